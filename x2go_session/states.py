"""The states of a terminal session: one table, one setter that refuses."""

from __future__ import annotations

import threading
from enum import Enum
from typing import Final

from x2go_session.errors import SessionStateError


class State(Enum):
    """Where a terminal session is in its life, as this side knows it."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    LOST = "lost"  # the connection; the session is suspended over there, or will be
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"


# What may follow what. Nothing follows TERMINATED and FAILED.
_NEXT: Final = {
    State.NEW: {State.STARTING},
    State.STARTING: {State.RUNNING, State.FAILED},
    State.RUNNING: {
        State.SUSPENDING,
        State.SUSPENDED,
        State.TERMINATING,
        State.TERMINATED,
        State.LOST,
    },
    State.SUSPENDING: {State.SUSPENDED, State.TERMINATED, State.LOST},
    State.SUSPENDED: {State.RESUMING, State.TERMINATING},
    State.RESUMING: {
        State.RUNNING,
        State.SUSPENDED,
        State.TERMINATED,
        State.LOST,
    },
    State.LOST: {State.RESUMING, State.TERMINATING},
    State.TERMINATING: {State.TERMINATED, State.LOST},
    State.TERMINATED: set(),
    State.FAILED: set(),
}
OVER: Final = frozenset({State.TERMINATED, State.FAILED})


class Life:
    """The state of one session, and waiting for another. Any thread."""

    def __init__(self, state: State = State.NEW) -> None:
        self._changed = threading.Condition()
        self._state = state

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    def enter(self, state: State) -> None:
        """Go on to a state. Raises `SessionStateError` if it may not follow."""
        with self._changed:
            if state not in _NEXT[self._state]:
                raise SessionStateError(
                    f"a session that is {self._state.value} cannot be {state.value}"
                )
            self._state = state
            self._changed.notify_all()

    def wait(self, states: frozenset[State], timeout_s: float | None = None) -> bool:
        """Wait until the state is one of these; False after the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state in states, timeout_s)
