"""How a connection does: its cipher, its key exchanges, and its round trip.

While data moves, the engine's probes measure the round trip. Else it is measured when
somebody asks for it, and the last measure is old: so a connection that nobody looks at
sends nothing for it. The question is a global request. Like a probe it goes behind all
that is queued here, and its answer comes behind all that is queued over there: what is
measured is what a visitor feels, and the best one is the path without queues.
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
    rtt_best_s: float | None  # of this connection
    rekeys: int  # key exchanges after the first; 0 if nobody counts them


class RttMeter:
    """Measures round trips of one connection. Any thread, never blocks.

    `ping` asks the peer for an answer and calls back when it came. `probes` returns
    the last and the best of the measures that were made otherwise, or 0.
    """

    def __init__(
        self,
        ping: Callable[[Callable[[], None]], None],
        probes: Callable[[], tuple[float, float]],
    ) -> None:
        self._ping = ping
        self._probes = probes
        # Protected by _lock; nothing is called while it is held.
        self._lock = threading.Lock()
        self._rtt_s: float | None = None
        self._best_s: float | None = None
        self._probed_s = 0.0
        self._asked_s: float | None = None  # and not answered
        self._noted_s: float | None = None

    def read_s(self) -> tuple[float | None, float | None]:
        """Return the last round trip and the best one; measure anew if that is old.

        While the peer owes an answer for longer than the last one took, that is the
        round trip: it is at least so long.
        """
        probed_s, best_probed_s = self._probes()
        now_s = time.monotonic()
        with self._lock:
            if probed_s != self._probed_s:  # data moves
                self._probed_s = probed_s
                self._note(probed_s, best_probed_s, now_s)
            old = self._noted_s is None or now_s - self._noted_s >= RTT_AGE_S
            waiting_s = 0.0 if self._asked_s is None else now_s - self._asked_s
            asks = old and self._asked_s is None
            if asks:
                self._asked_s = now_s
            rtt_s, best_s = self._rtt_s, self._best_s
        if asks:
            self._ping(self._answer)
        return None if rtt_s is None else max(rtt_s, waiting_s), best_s

    def _answer(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            if self._asked_s is not None:
                rtt_s = now_s - self._asked_s
                self._asked_s = None
                self._note(rtt_s, rtt_s, now_s)

    def _note(self, rtt_s: float, least_s: float, now_s: float) -> None:
        self._rtt_s = rtt_s
        self._best_s = least_s if self._best_s is None else min(self._best_s, least_s)
        self._noted_s = now_s


def cipher_of(transport: AnyTransport) -> str:
    """Return the cipher that was agreed: both, if the directions differ."""
    ours = str(getattr(transport, "local_cipher", ""))
    theirs = str(getattr(transport, "remote_cipher", ""))
    return ours if ours == theirs else f"{ours}, {theirs}"


def rekeys_of(transport: AnyTransport) -> int:
    """Return how often keys were exchanged anew; 0 for a stock transport."""
    return int(getattr(transport.packetizer, "rekeys", 0))
