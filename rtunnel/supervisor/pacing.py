"""How long to wait before the next try, so that a server is never hammered.

What a server may do to a client that comes too often, by sshd_config(5):

* MaxStartups 10:30:100: above 10 connections that have not logged in, new ones are
  dropped at random. So few logins to one server run at once (`logins`).
* PerSourcePenalties: a failed login costs 5 s, one that was broken off 1 s; an address
  that owes 15 s or more is shut out, whoever else comes from there. So what a retry
  alone does not cure (a key that is refused, a host key that is wrong) waits half a
  minute at least, and up to a quarter of an hour.

Waits double up to a limit, and half of each is random: clients that lost the same
server come back at different times. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rtunnel.errors import (
    BackendUnavailable,
    ConfigError,
    ConnectError,
    ForwardRefused,
    HostUnreachable,
    InvalidAddress,
    PortInUse,
)

# A limit for the doubling, far above what any limit in seconds lets through.
MOST_DOUBLINGS: Final = 30


class Trouble(Enum):
    """What went wrong, as far as it matters for when to try again."""

    LINK = "link"  # unreachable, or lost: likely to be back by itself
    LOGIN = "login"  # keys, host key, options: somebody has to change something
    PORT_TAKEN = "port taken"  # often by our own dead session over there
    FORWARD_REFUSED = "refused"  # the server's configuration forbids it


def trouble_of(error: Exception) -> Trouble:
    """Return what kind of trouble an error is."""
    if isinstance(error, PortInUse):
        return Trouble.PORT_TAKEN
    if isinstance(error, ForwardRefused):
        return Trouble.FORWARD_REFUSED
    if isinstance(error, HostUnreachable):
        return Trouble.LINK
    if isinstance(
        error, ConnectError | ConfigError | InvalidAddress | BackendUnavailable
    ):
        return Trouble.LOGIN
    return Trouble.LINK


class Pace(BaseModel):
    """The first and the longest wait for each kind of trouble, in seconds."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )

    first_s: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    max_s: Annotated[float, Field(ge=0.1, le=86_400)] = 60.0
    # A connection that stood for so long was none that fails again and again.
    stable_after_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    login_first_s: Annotated[float, Field(ge=15, le=86_400)] = 60.0
    login_max_s: Annotated[float, Field(ge=15, le=86_400)] = 900.0
    # With ClientAliveInterval, sshd gives up a dead session after a minute or so.
    port_taken_first_s: Annotated[float, Field(ge=1, le=86_400)] = 5.0
    port_taken_max_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    refused_first_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    refused_max_s: Annotated[float, Field(ge=1, le=86_400)] = 900.0

    @model_validator(mode="after")
    def _check(self) -> Pace:
        for trouble in Trouble:
            first_s, max_s = self.limits(trouble)
            if max_s < first_s:
                raise ValueError(
                    f"the longest wait ({max_s:g} s) is below the first ({first_s:g} s)"
                )
        return self

    def limits(self, trouble: Trouble) -> tuple[float, float]:
        """Return the first and the longest wait for a kind of trouble."""
        return {
            Trouble.LINK: (self.first_s, self.max_s),
            Trouble.LOGIN: (self.login_first_s, self.login_max_s),
            Trouble.PORT_TAKEN: (self.port_taken_first_s, self.port_taken_max_s),
            Trouble.FORWARD_REFUSED: (self.refused_first_s, self.refused_max_s),
        }[trouble]


class Streak:
    """Failures in a row. Another kind of trouble begins a new row."""

    def __init__(self) -> None:
        self._trouble: Trouble | None = None
        self._count = 0

    def end(self) -> None:
        """It worked: the next failure is a first one."""
        self._trouble = None
        self._count = 0

    def wait_s(
        self, trouble: Trouble, pace: Pace, random: Callable[[], float]
    ) -> float:
        """Count a failure; return how long to wait. `random()` is from 0 to below 1."""
        self._count = self._count + 1 if trouble is self._trouble else 1
        self._trouble = trouble
        first_s, max_s = pace.limits(trouble)
        doubled_s = first_s * 2.0 ** min(self._count - 1, MOST_DOUBLINGS)
        return min(doubled_s, max_s) * (0.5 + 0.5 * random())
