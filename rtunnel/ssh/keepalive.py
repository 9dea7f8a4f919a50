"""Notice a dead peer: keepalives that want an answer, with a limit.

Theory of operation. Whatever arrives proves life. After `interval_s` of silence a
global request that no server knows goes out; SUCCESS and FAILURE both answer it. A
peer that stayed silent for `interval_s * count_max` seconds, with a question open for
`ANSWER_GRACE_S`, is dead; that is noticed within `LOOK_S`. ssh(1) knows this as
ServerAliveInterval and ServerAliveCountMax; paramiko's own keepalive asks without ever
looking for an answer.

Pure arithmetic: the caller has the clock and the wire.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

# The least time that a peer has to answer, whatever the interval.
ANSWER_GRACE_S: Final = 1.0
# What arrived is dated when it is looked at: so it is, so often, also while nothing is
# due. A peer that fell silent amid a transfer would be noticed an interval later.
LOOK_S: Final = 0.5
# ssh_config(5): ServerAliveCountMax.
COUNT_MAX: Final = 3


class Verdict(Enum):
    """What to do about the peer now."""

    WAIT = auto()
    ASK = auto()
    DEAD = auto()


class Keepalive:
    """The silence of one peer. Only for the thread that reads from it."""

    def __init__(
        self, interval_s: float, count_max: int, now_s: float, heard_bytes: int = 0
    ) -> None:
        if interval_s <= 0 or count_max < 1:
            raise ValueError("a keepalive needs an interval above 0 and a count of 1")
        self.interval_s = interval_s
        self.count_max = count_max
        self._heard_s = now_s
        self._heard_bytes = heard_bytes
        self._asked_first_s: float | None = None
        self._asked_last_s = now_s
        self._looked_s = now_s

    @property
    def limit_s(self) -> float:
        """Return how long the peer may stay silent."""
        return max(self.interval_s * self.count_max, self.interval_s + ANSWER_GRACE_S)

    def judge(self, now_s: float, heard_bytes: int) -> Verdict:
        """Say what to do, given the bytes that have ever arrived from the peer."""
        if heard_bytes != self._heard_bytes:
            self._heard_bytes = heard_bytes
            self._heard_s = now_s
            self._asked_first_s = None
        slept = now_s - self._looked_s > LOOK_S + ANSWER_GRACE_S
        self._looked_s = now_s
        if slept and now_s - self._heard_s > self.interval_s:
            # We were the one that was silent (SIGSTOP, a machine that is overloaded):
            # the answers may be here, unread. So the peer's silence begins anew.
            self._heard_s = now_s - self.interval_s
            self._asked_first_s = None
        if now_s - self._heard_s < self.interval_s:
            return Verdict.WAIT
        if (
            self._asked_first_s is not None
            and now_s - self._heard_s >= self.limit_s
            and now_s - self._asked_first_s >= ANSWER_GRACE_S
        ):
            return Verdict.DEAD
        if self._asked_first_s is None:
            self._asked_first_s = self._asked_last_s = now_s
            return Verdict.ASK
        if now_s - self._asked_last_s >= self.interval_s:
            self._asked_last_s = now_s
            return Verdict.ASK
        return Verdict.WAIT

    def next_s(self, now_s: float) -> float:
        """Return the seconds until `judge` is to be asked again."""
        if self._asked_first_s is None:
            due_s = self._heard_s + self.interval_s
        else:
            due_s = min(
                self._asked_last_s + self.interval_s,
                max(self._heard_s + self.limit_s, self._asked_first_s + ANSWER_GRACE_S),
            )
        return max(min(due_s - now_s, LOOK_S), 0.0)
