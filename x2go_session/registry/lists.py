"""What a server listed: asked for, and kept until it is asked for again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from x2go_session.control import Control
from x2go_session.replies import Desktop, Mount, SessionInfo

Listed = TypeVar("Listed")


class Kept(Generic[Listed]):
    """One list, and whoever wants to know it at the same time waits for one answer."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._value: Listed | None = None

    @property
    def is_known(self) -> bool:
        """Whether it was asked for before. Never blocks."""
        return self._value is not None

    def get(self, ask: Callable[[], Listed], *, fresh: bool = False) -> Listed:
        """Return what is known; ask if nothing is, or if it shall be `fresh`."""
        with self._asking:
            if self._value is None or fresh:
                self._value = ask()
            return self._value


class ServerLists:
    """Sessions, desktops, and mounts of a server. Any thread; may block.

    Raises what `Control` raises; what is known stays known then.
    """

    def __init__(self) -> None:
        self._sessions: Kept[list[SessionInfo]] = Kept()
        self._desktops: Kept[list[Desktop]] = Kept()
        self._lock = threading.Lock()
        self._mounts: dict[str, Kept[list[Mount]]] = {}

    def sessions(self, control: Control, *, fresh: bool = True) -> list[SessionInfo]:
        """Return the user's sessions."""
        return list(self._sessions.get(control.sessions, fresh=fresh))

    def desktops(self, control: Control, *, fresh: bool = True) -> list[Desktop]:
        """Return the desktops that can be shared."""
        return list(self._desktops.get(control.desktops, fresh=fresh))

    def mounts(
        self, control: Control, session: str, *, fresh: bool = True
    ) -> list[Mount]:
        """Return the folders that are mounted in a session."""
        with self._lock:
            kept = self._mounts.setdefault(session, Kept())
        return list(kept.get(lambda: control.mounts(session), fresh=fresh))

    def refresh(
        self,
        control: Control,
        *,
        sessions: bool = False,
        desktops: bool = False,
        mounts: bool = False,
    ) -> None:
        """Ask again for some of the lists; for mounts of the sessions that run."""
        if sessions:
            self.sessions(control)
        if desktops:
            self.desktops(control)
        if mounts:
            running = [
                each.name
                for each in self.sessions(control, fresh=False)
                if each.is_running
            ]
            for name in running:
                self.mounts(control, name)
            with self._lock:
                for gone in self._mounts.keys() - set(running):
                    del self._mounts[gone]
