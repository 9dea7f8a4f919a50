"""Looks at the servers again and again, so that a client knows what happens there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from rtunnel.errors import RTunnelError
from x2go_session.errors import X2GoError
from x2go_session.registry.registry import Registry
from x2go_session.registry.session import RegisteredSession

log = logging.getLogger("x2go_session.registry.refresher")


@dataclass(frozen=True, kw_only=True)
class Refreshing:
    """What is looked at: lists to be kept fresh, and what is done with them."""

    sessions: bool = False
    desktops: bool = False
    mounts: bool = False
    update: bool = False  # tell what became of known sessions
    adopt: bool = False  # register those that are not known
    adopt_published: bool = True

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return any((self.sessions, self.desktops, self.mounts, self.update, self.adopt))


class Refresher:
    """A thread that asks each connected server every `interval_s`, until `close`.

    A connection that turns out to be lost is told to `on_death`.
    """

    def __init__(
        self,
        registry: Registry,
        what: Refreshing,
        interval_s: float,
        on_death: Callable[[RegisteredSession, Exception], object],
    ) -> None:
        self._registry = registry
        self._what = what
        self._interval_s = interval_s
        self._on_death = on_death
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="x2go-refresh", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Look no more; wait for the thread."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            for session in self._registry.connected():
                try:
                    self._look(session)
                except (X2GoError, RTunnelError) as error:
                    log.info("not refreshed: %s", error)
                    if not session.connection.is_connected:
                        self._on_death(session, error)

    def _look(self, session: RegisteredSession) -> None:
        what, connection = self._what, session.connection
        connection.lists.refresh(
            connection.control,
            sessions=what.sessions or what.update or what.adopt,
            desktops=what.desktops,
            mounts=what.mounts,
        )
        if not (what.update or what.adopt):
            return
        listed = connection.lists.sessions(connection.control, fresh=False)
        if what.adopt:
            self._registry.adopt(session, listed, with_published=what.adopt_published)
        else:
            self._registry.update(session, listed)
