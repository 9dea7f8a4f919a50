"""Ports and pairs of the reference pump: what a reactor moves bytes for.

Everything here runs under the lock of the reactor it belongs to (theory of operation:
`rtunnel._pump_py`). Events set an error or a flag; `_step` acts on them.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from rtunnel._pump_sides import Bucket, Share, Side
from rtunnel._pump_types import (
    ABORTED,
    GRANT_MAX_BYTES,
    PORT_BUFFER_MAX_BYTES,
    PairEnd,
    PortEvents,
    buffer_full,
    fed_after_eof,
    grant_error,
    os_error,
)

if TYPE_CHECKING:
    from rtunnel._pump_py import Reactor

# One read, as large as socat's and OpenSSH's buffers get.
# Pieces that wait are put together up to this size.
COALESCE_BYTES: Final = 1024
READ_CHUNK_BYTES: Final = 64 * 1024
# What one end may move before the others get their turn.
STEP_BYTES: Final = 1024 * 1024
# What close() reads and drops, so that the kernel need not answer it with a reset.
CLOSE_DISCARD_BYTES: Final = 1024 * 1024


Report = Callable[[], None]


class Entry:
    """What a reactor holds: a pair or a port. Fields are under the reactor's lock."""

    _reactor: Reactor
    _sides: tuple[Side, ...]
    _error: int = 0
    _ended: bool = False
    # When to step again although nothing happened: a pair that waits for its rate.
    _due_ns: int | None = None

    def _step(self, now_ns: int) -> bool:
        """Move what can be moved; return True to be called again soon."""
        raise NotImplementedError

    def _end_report(self) -> Report:
        raise NotImplementedError

    def _note(self, side: Side, code: int) -> None:
        """Take the pending error of a socket, 0 for none."""
        raise NotImplementedError

    def _finish(self, error: int) -> None:
        """Close the descriptors, resetting them on an error, and report the end."""
        self._error = error
        self._ended = True
        self._reactor._remove(self)
        for side in self._sides:
            side.close(reset=error != 0)
        self._reactor._report(self, self._end_report())

    def reset(self) -> None:
        """Drop what is buffered and reset every socket: the peers see ECONNRESET.

        Never blocks. Call from any thread. Does nothing once ended.
        """
        with self._reactor._lock:
            self._error = self._error or ABORTED
            self._reactor._touch(self)


class Rate:
    """A rate that several ports keep together. Made by `Reactor.add_rate`."""

    def __init__(self, reactor: Reactor, rate: int) -> None:
        now_ns = time.monotonic_ns()
        self._reactor = reactor
        self._in = Share(rate, now_ns)
        self._out = Share(rate, now_ns)

    def _due_ns(self) -> int | None:
        dues = [share.ready_at_ns() for share in (self._in, self._out)]
        return min((due for due in dues if due is not None), default=None)

    def _call(self, now_ns: int) -> list[Any]:
        return self._in.call(now_ns) + self._out.call(now_ns)

    def _leave(self, port: Port) -> None:
        self._in.leave(port)
        self._out.leave(port)


class Port(Entry):
    """Memory on one side, a socket on the other. Made by `Reactor.add_port`.

    Every method may be called from any thread and never blocks; on a port that has
    ended they do nothing.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        events: PortEvents,
        rate: Rate | None,
    ):
        self._reactor = reactor
        self._rate = rate
        self._side = Side(sock)
        self._sides = (self._side,)
        self._events = events
        self._granted = 0
        self._queue: deque[memoryview] = deque()
        self._buffered = 0
        self._consumed = 0
        self._eof_wanted = False  # feed_eof() was called
        self._close_wanted = False
        self._output_done = False  # shut down, or the socket takes no more
        self._eof_read = False
        self._bytes_in = 0
        self._bytes_out = 0

    @property
    def bytes_in(self) -> int:
        """Bytes read from the socket."""
        return self._bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes written to the socket; what was discarded is not counted."""
        return self._bytes_out

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed that the socket has not taken yet."""
        return self._buffered

    def grant(self, n: int) -> None:
        """Allow `n` more bytes to be read from the socket; a port starts with 0.

        Raises ValueError when negative or over 2^48 in sum.
        """
        with self._reactor._lock:
            if not 0 <= n <= GRANT_MAX_BYTES - self._granted:
                raise grant_error(n)
            if n and not self._ended:
                self._granted += n
                self._reactor._touch(self)

    def feed(self, data: bytes) -> None:
        """Queue bytes for the socket, written at once when nothing is queued.

        Raises RuntimeError after `feed_eof()`, and BufferError over 32 MiB: the
        caller keeps no window.
        """
        with self._reactor._lock:
            if self._eof_wanted:
                raise fed_after_eof()
            if not data or self._ended or self._close_wanted or self._error:
                return
            if self._buffered + len(data) > PORT_BUFFER_MAX_BYTES:
                raise buffer_full(self._buffered)
            direct = not self._queue
            if not direct and len(self._queue[-1]) + len(data) <= COALESCE_BYTES:
                # A piece in memory takes more than its bytes, if they are few.
                self._queue[-1] = memoryview(bytes(self._queue[-1]) + bytes(data))
                self._buffered += len(data)
                return
            # The caller may change what is not bytes before it is written.
            view = memoryview(data)
            self._queue.append(view if view.readonly else memoryview(bytes(view)))
            self._buffered += len(data)
            if direct and self._rate is None:
                self._write(0)
            # Also for what the socket did not take: the poller has to wait for it now.
            self._reactor._touch(self)

    def feed_eof(self) -> None:
        """End the output: shutdown(SHUT_WR) behind what was fed, once."""
        with self._reactor._lock:
            self._eof_wanted = True
            self._reactor._touch(self)

    def close(self) -> None:
        """Write what was fed, then close the socket in order; reading stops."""
        with self._reactor._lock:
            self._close_wanted = True
            self._reactor._touch(self)

    def _note(self, side: Side, code: int) -> None:
        # EPIPE is what TCP says of a reset behind the peer's FIN: the output is gone,
        # but what the peer sent is whole and still readable.
        if code == errno.EPIPE:
            self._output_done = True
        elif code:
            self._error = self._error or code

    def _write(self, now_ns: int) -> None:
        while self._queue and self._side.writable and not self._output_done:
            data = piece = self._queue[0]
            if self._rate is not None:
                most = self._rate._out.ask(self, now_ns)
                if not most:
                    self._reactor._wait_for(self._rate)
                    break
                piece = data[:most]
            try:
                n = self._side.write(piece)
            except OSError as exc:
                self._note(self._side, exc.errno or errno.EIO)
                break
            if self._rate is not None:
                self._rate._out.spend(n)
            self._bytes_out += n
            self._consumed += n
            self._buffered -= n
            if n == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = data[n:]
        if self._output_done:
            self._consumed += self._buffered
            self._buffered = 0
            self._queue.clear()

    def _read(self, now_ns: int) -> bool:
        """Read once within the grant; return True if there may be more."""
        if self._eof_read or not self._side.readable:
            return False
        try:
            if not self._granted:
                self._eof_read = self._side.at_eof()
                data = None
            else:
                limit = min(self._granted, READ_CHUNK_BYTES)
                if self._rate is not None:
                    limit = min(limit, self._rate._in.ask(self, now_ns))
                    if not limit:
                        self._reactor._wait_for(self._rate)
                        return False
                data = self._side.read(limit)
                self._eof_read = data == b""
        except OSError as exc:
            self._error = exc.errno or errno.EIO
            return False
        if data:
            self._granted -= len(data)
            if self._rate is not None:
                self._rate._in.spend(len(data))
            self._bytes_in += len(data)
            chunk = data
            self._reactor._report(self, lambda: self._events.on_readable(chunk))
            return True
        return False

    def _step(self, now_ns: int) -> bool:
        if not self._error:
            self._write(now_ns)
        if self._consumed:
            n, self._consumed = self._consumed, 0
            self._reactor._report(self, lambda: self._events.on_consumed(n))
        if self._error:
            self._finish(self._error)
            return False
        if self._close_wanted:
            if not self._queue:
                self._close_in_order()
            return False
        if self._eof_wanted and not self._queue and not self._output_done:
            self._shutdown()
        more = self._read(now_ns)
        if self._error:
            self._finish(self._error)
        elif self._eof_read and not more:
            self._report_eof()
            if self._eof_wanted and not self._queue:
                self._finish(0)
        # A read that used up the grant may have left the end of the stream behind it.
        return more

    _eof_reported = False

    def _report_eof(self) -> None:
        if not self._eof_reported:
            self._eof_reported = True
            self._reactor._report(self, self._events.on_eof)

    def _shutdown(self) -> None:
        assert self._side.sock is not None
        self._output_done = True
        try:
            self._side.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            # ENOTCONN: the connection is gone already; reading will say how.
            if exc.errno != errno.ENOTCONN:
                self._error = exc.errno or errno.EIO

    def _close_in_order(self) -> None:
        """Close behind the last byte, not in front of it.

        A TCP socket closed with bytes unread sends a reset, which may overtake what
        we wrote: end our direction first, and take what is there.
        """
        if not self._output_done:
            self._shutdown()
        try:
            for _ in range(CLOSE_DISCARD_BYTES // READ_CHUNK_BYTES):
                if not self._side.read(READ_CHUNK_BYTES):
                    break
        except OSError:
            pass
        self._finish(0)

    def _end_report(self) -> Report:
        if self._rate is not None:
            self._rate._leave(self)
        error = os_error(self._error) if self._error else None
        return lambda: self._events.on_end(error)


class _Flow(Enum):
    """How far one direction of a pair has come."""

    OPEN = auto()  # bytes may come
    DRAIN = auto()  # the source has ended; what is buffered is still written
    DONE = auto()  # the end was passed on
    BROKEN = auto()  # the sink takes no more, though the source has more


_FLOW_TABLE: Final = {
    _Flow.OPEN: {_Flow.DRAIN, _Flow.BROKEN},
    _Flow.DRAIN: {_Flow.DONE, _Flow.BROKEN},
    _Flow.DONE: set[_Flow](),
    _Flow.BROKEN: set[_Flow](),
}


class _Direction:
    """One direction of a pair."""

    __slots__ = ("bucket", "buffer", "count", "flow", "sink", "source")

    def __init__(self, source: Side, sink: Side, rate: int, now_ns: int) -> None:
        self.source = source
        self.sink = sink
        self.flow = _Flow.OPEN
        self.buffer = memoryview(b"")
        self.count = 0
        self.bucket = Bucket(rate, now_ns) if rate else None

    def to(self, flow: _Flow) -> None:
        if flow not in _FLOW_TABLE[self.flow]:
            raise AssertionError(f"a direction cannot go from {self.flow} to {flow}")
        self.flow = flow

    def step(self, now_ns: int) -> bool:
        """Move up to STEP_BYTES; return True if that was the reason to stop."""
        budget = STEP_BYTES
        while budget > 0:
            if self.buffer:
                n = self.sink.write(self.buffer) if self.sink.writable else 0
                if not n:
                    return False
                self.count += n
                self.buffer = self.buffer[n:]
            elif self.flow is _Flow.OPEN:
                limit = READ_CHUNK_BYTES
                if self.bucket is not None:
                    limit = min(limit, self.bucket.available(now_ns))
                data = (
                    self.source.read(limit) if self.source.readable and limit else None
                )
                if data is None:
                    return False
                if self.bucket is not None:
                    self.bucket.spend(len(data))
                self.buffer = memoryview(data)
                budget -= len(data)
                if not data:
                    self.to(_Flow.DRAIN)
            else:
                return False
        return True


class Pair(Entry):
    """Two ends whose bytes go to each other. Made by `Reactor.add_pair`."""

    def __init__(
        self,
        reactor: Reactor,
        a: Side,
        b: Side,
        on_end: Callable[[PairEnd], None] | None,
        rate: int,
    ) -> None:
        now_ns = time.monotonic_ns()
        self._reactor = reactor
        self._sides = (a, b)
        self._on_end = on_end
        self._ab = _Direction(a, b, rate, now_ns)
        self._ba = _Direction(b, a, rate, now_ns)

    @property
    def bytes_ab(self) -> int:
        """Bytes delivered from a to b."""
        return self._ab.count

    @property
    def bytes_ba(self) -> int:
        """Bytes delivered from b to a."""
        return self._ba.count

    def _note(self, side: Side, code: int) -> None:
        # EPIPE belongs to the write that will find it (see Port._note).
        if code and code != errno.EPIPE:
            self._error = self._error or code

    def _step(self, now_ns: int) -> bool:
        more = False
        self._due_ns = None
        for direction in (self._ab, self._ba):
            if self._error:
                break
            try:
                more |= direction.step(now_ns)
                if direction.flow is _Flow.DRAIN and not direction.buffer:
                    self._pass_end_on(direction)
            except OSError as exc:
                self._failed(direction, exc.errno or errno.EIO)
            self._throttle(direction, now_ns)
        flows = {self._ab.flow, self._ba.flow}
        if not self._error and not flows & {_Flow.OPEN, _Flow.DRAIN}:
            # A direction that lost bytes must not look like one that ended.
            self._finish(errno.EPIPE if _Flow.BROKEN in flows else 0)
            return False
        if self._error:
            self._finish(self._error)
            return False
        return more

    def _failed(self, direction: _Direction, code: int) -> None:
        if code == errno.EPIPE:
            # The sink takes no more, but may still have something to say: let it.
            direction.to(_Flow.BROKEN)
            direction.buffer = memoryview(b"")
        else:
            self._error = self._error or code

    def _pass_end_on(self, direction: _Direction) -> None:
        sink = direction.sink
        if sink.sock is not None:
            try:
                sink.sock.shutdown(socket.SHUT_WR)
            except OSError as exc:
                if exc.errno != errno.ENOTCONN:
                    raise
                raise os_error(errno.ECONNRESET) from exc
        else:
            self._reactor._poller.forget(sink.write_fd)
            os.close(sink.write_fd)
            sink.write_fd = -1
        direction.to(_Flow.DONE)

    def _throttle(self, direction: _Direction, now_ns: int) -> None:
        if (
            direction.bucket is not None
            and direction.flow is _Flow.OPEN
            and not direction.buffer
            and direction.source.readable
            and not direction.bucket.available(now_ns)
        ):
            due = direction.bucket.ready_at_ns()
            self._due_ns = due if self._due_ns is None else min(self._due_ns, due)

    def _end_report(self) -> Report:
        error = os_error(self._error) if self._error else None
        end = PairEnd(self.bytes_ab, self.bytes_ba, error)
        callback = self._on_end
        return lambda: callback(end) if callback is not None else None
