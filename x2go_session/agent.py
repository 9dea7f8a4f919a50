"""The agent of a session, over there: its states, and seeing it settle or end."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from x2go_session.control import Control
from x2go_session.errors import ControlError
from x2go_session.session import Session

# The agent's own words for its states.
STARTING: Final = "STARTING"
RUNNING: Final = "RUNNING"
SUSPENDED: Final = "SUSPENDED"
TERMINATED: Final = "TERMINATED"
GONE: Final = ""  # there is no agent
# Nothing is under way in these.
SETTLED: Final = (RUNNING, SUSPENDED, TERMINATED, GONE)
OVER: Final = (TERMINATED, GONE)
# Suspending takes the agent 5 to 7 s on an idle server.
SETTLE_TIMEOUT_S: Final = 75.0


def settle(
    control: Control, session: Session, states: Collection[str] = SETTLED
) -> str:
    """Wait until the agent of a session is in one of these states; return which.

    One that died says for ever what it said last: it is GONE. Raises `ControlError`
    when it takes more than `SETTLE_TIMEOUT_S`.
    """
    name = session.name
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while (state := control.wait_state(name, states)) not in states:
        if not control.has_agent(name, session.agent_pid):
            return GONE
        if time.monotonic() > deadline:
            raise ControlError(
                f"the agent of {name} is {state} still, after {SETTLE_TIMEOUT_S:.0f} s"
            )
    return state


def end(control: Control, session: Session) -> None:
    """Terminate a session over there, once that is possible, and see it gone.

    An agent that is told to end while it suspends or resumes would survive.
    """
    settle(control, session, (STARTING, *SETTLED))
    control.terminate_session(session.name)
    control.end_agent(session.name, session.agent_pid)
    control.remove_folder(session.name)
