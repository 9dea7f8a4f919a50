"""Keep a session on this display while connections to its server come and go.

A session outlives its connection: the server suspends it. The keeper connects again,
with longer and longer pauses, and resumes it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable
from typing import Final

import rtunnel
from rtunnel.errors import AuthenticationFailed, HostKeyError, RTunnelError
from x2go_session import events
from x2go_session.control import Control
from x2go_session.errors import NoSuchSession, X2GoError
from x2go_session.states import State
from x2go_session.terminal import Terminal

log = logging.getLogger("x2go_session.keeper")

# Each pause is between half of its length and all of it: a server that comes back is
# not met by all of its clients at once.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
# Where nothing is left to be done, by this side at least.
ENDS: Final = frozenset({State.TERMINATED, State.FAILED, State.SUSPENDED})


class Keeper:
    """Has a session resumed whenever its connection was lost.

    `connect` makes a new tunnel to the same server; the keeper owns those that it
    makes, and closes them. Any thread.
    """

    def __init__(
        self, terminal: Terminal, connect: Callable[[], rtunnel.Tunnel]
    ) -> None:
        self._terminal = terminal
        self._connect = connect
        self._tunnel: rtunnel.Tunnel | None = None
        self._stop = threading.Event()

    def keep(self) -> State:
        """Stay with the session until it is over or suspended; return which.

        Blocks; until `stop` at most. Raises `AuthenticationFailed` and `HostKeyError`
        when the server does not let us in again: another try would not help.
        """
        while not self._stop.is_set():
            self._terminal.wait_for(*ENDS, State.LOST, timeout_s=0.5)
            state = self._terminal.state
            if state in ENDS:
                return state
            if state is State.LOST:
                self._take_up()
        return self._terminal.state

    def stop(self) -> None:
        """Take up nothing any more. Never blocks."""
        self._stop.set()

    def close(self) -> None:
        """Close the connection that was made last, if one was. Blocks."""
        self.stop()
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.close()

    def _take_up(self) -> None:
        """Connect and resume, until that works or the session is over."""
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set() and self._terminal.state not in ENDS:
            try:
                self._resume_on_new_connection()
                return
            except (AuthenticationFailed, HostKeyError):
                raise
            except NoSuchSession:
                return
            except (X2GoError, RTunnelError) as error:
                wait_s = pause_s * random.uniform(0.5, 1.0)
                log.info("not yet: next_s=%.1f error=%s", wait_s, error)
                self._stop.wait(wait_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _resume_on_new_connection(self) -> None:
        old, self._tunnel = self._tunnel, None
        if old is not None:
            with contextlib.suppress(RTunnelError):
                old.close()
        self._tunnel = self._connect()
        self._terminal.use(Control(self._tunnel))
        session = self._terminal.session
        session.events.emit(events.ConnectionRestored(session=session.name))
        self._terminal.resume()
