"""How a connection does: its cipher, its key exchanges, and its round trip.

A round trip is measured when somebody asks for it, and the last measure is old: so a
connection that nobody looks at sends nothing for it. The question is a global request,
which goes behind all that is queued here, and whose answer comes behind all that is
queued over there: what is measured is what a visitor feels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rtunnel.ssh.seams import AnyTransport

# A measure is good for so long.
RTT_AGE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What there is to say of a connection, whatever its backend."""

    cipher: str  # from here to the peer, and back if that is another one
    rtt_s: float | None  # the last one; None: not measured yet
    rekeys: int  # key exchanges after the first; 0 if nobody counts them


class RttMeter:
    """Measures round trips of one connection. Any thread, never blocks.

    `ping` asks the peer for an answer and calls back when it came.
    """

    def __init__(self, ping: Callable[[Callable[[], None]], None]) -> None:
        self._ping = ping
        # Protected by _lock; nothing is called while it is held.
        self._lock = threading.Lock()
        self._rtt_s: float | None = None
        self._asked_s: float | None = None  # and not answered
        self._answered_s: float | None = None

    def read_s(self) -> float | None:
        """Return the last round trip; measure anew if it is old.

        While the peer owes an answer for longer than the last one took, that is the
        round trip: it is at least so long.
        """
        now_s = time.monotonic()
        with self._lock:
            if self._asked_s is not None:
                waiting_s = now_s - self._asked_s
                return None if self._rtt_s is None else max(self._rtt_s, waiting_s)
            old = self._answered_s is None or now_s - self._answered_s >= RTT_AGE_S
            if old:
                self._asked_s = now_s
            rtt_s = self._rtt_s
        if old:
            self._ping(self._answer)
        return rtt_s

    def _answer(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            if self._asked_s is not None:
                self._rtt_s = now_s - self._asked_s
                self._asked_s = None
                self._answered_s = now_s


def cipher_of(transport: AnyTransport) -> str:
    """Return the cipher that was agreed: both, if the directions differ."""
    ours = str(getattr(transport, "local_cipher", ""))
    theirs = str(getattr(transport, "remote_cipher", ""))
    return ours if ours == theirs else f"{ours}, {theirs}"


def rekeys_of(transport: AnyTransport) -> int:
    """Return how often keys were exchanged anew; 0 for a stock transport."""
    return int(getattr(transport.packetizer, "rekeys", 0))
