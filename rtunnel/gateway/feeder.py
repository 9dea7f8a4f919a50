"""What is put between a visitor and SSH: a header in front, or a limit of the rate.

SSH gets one end of a socketpair. The other is joined to the visitor: by splice(2) if
there is only a header to be put first; by two ports of the reactor if a user has a
rate, which is one for all that goes through it.
"""

from __future__ import annotations

import socket
import threading
from typing import Any, Final

from rtunnel import pump

# Read from one side and not yet written to the other: enough to keep a link busy.
AHEAD_BYTES: Final = 256 * 1024
JOIN_S: Final = 5.0


class Feeder:
    """Stands before visitors. Any thread; `close` last."""

    def __init__(self) -> None:
        # Protected by _lock.
        self._lock = threading.Lock()
        self._reactor: pump.ReactorLike | None = None
        self._thread: threading.Thread | None = None
        self._rates: dict[tuple[str, int], _SharedRate] = {}

    def wrap(
        self,
        sock: socket.socket,
        *,
        user: str,
        rate_bytes_per_s: int | None,
        header: bytes = b"",
    ) -> socket.socket:
        """Return what stands for `sock`, which is owned from here on.

        What is read from it begins with the header. All that is wrapped for a user
        goes through at that rate together, each way. Raises OSError; `sock` is closed
        then.
        """
        if not header and rate_bytes_per_s is None:
            return sock
        try:
            near, far = socket.socketpair()
        except OSError:
            sock.close()
            raise
        try:
            # A new socket has room for so little.
            if header:
                near.send(header)
            with self._lock:
                reactor = self._running()
                if rate_bytes_per_s is None:
                    reactor.add_pair(sock, near)
                else:
                    rate = self._rate(reactor, user, rate_bytes_per_s)
                    _Bridge(reactor, sock, near, rate, self._release)
        except BaseException:
            for each in (sock, near, far):
                each.close()
            raise
        return far

    def _running(self) -> pump.ReactorLike:
        if self._reactor is None:
            self._reactor = pump.Reactor()
            self._thread = threading.Thread(
                target=self._reactor.run, name="rtunnel-feeder", daemon=True
            )
            self._thread.start()
        return self._reactor

    def _rate(
        self, reactor: pump.ReactorLike, user: str, bytes_per_s: int
    ) -> _SharedRate:
        place = (user, bytes_per_s)
        rate = self._rates.get(place)
        if rate is None:
            rate = self._rates[place] = _SharedRate(place, reactor)
        rate.bridges += 1
        return rate

    def _release(self, rate: _SharedRate) -> None:
        """Forget a rate that nobody is held to any more. The reactor's thread."""
        with self._lock:
            rate.bridges -= 1
            if not rate.bridges:
                del self._rates[rate.place]

    def close(self) -> None:
        """Reset what is left; wait for the thread."""
        with self._lock:
            reactor, thread = self._reactor, self._thread
        if reactor is not None and thread is not None:
            reactor.close()
            thread.join(JOIN_S)


class _SharedRate:
    """The rate of one user, and how many bridges keep it."""

    def __init__(self, place: tuple[str, int], reactor: pump.ReactorLike) -> None:
        self.place = place
        self.rate = reactor.add_rate(place[1])
        self.bridges = 0


class _Bridge:
    """A visitor and its socketpair, as ports: what one reads, the other writes.

    Only on the reactor's thread, once it is made.
    """

    def __init__(
        self,
        reactor: pump.ReactorLike,
        visitor: socket.socket,
        near: socket.socket,
        rate: _SharedRate,
        on_end: Any,
    ) -> None:
        self._rate = rate
        self._on_end = on_end
        self._open = 2
        visitors, ours = _Side(self), _Side(self)
        visitors.other, ours.other = ours, visitors
        # In this order: a visitor may be gone at once, and then ours is needed; on
        # ours nothing happens before the other end is handed out.
        ours.port = reactor.add_port(near, ours)
        visitors.port = reactor.add_port(visitor, visitors, rate.rate)
        ours.port.grant(AHEAD_BYTES)
        visitors.port.grant(AHEAD_BYTES)

    def side_ended(self) -> None:
        self._open -= 1
        if not self._open:
            self._on_end(self._rate)


class _Side:
    """One of its ports; implements `PortEvents`."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge
        self.port: Any = None
        self.other: Any = None

    def on_readable(self, data: bytes) -> None:
        self.other.port.feed(data)

    def on_eof(self) -> None:
        self.other.port.feed_eof()

    def on_consumed(self, n: int) -> None:
        # What has left here may be read over there.
        self.other.port.grant(n)

    def on_end(self, error: OSError | None) -> None:
        # A visitor that has ended before it was even known here needs no end.
        port = self.other.port
        if port is not None and error is None:
            port.close()
        elif port is not None:
            port.reset()
        self._bridge.side_ended()
