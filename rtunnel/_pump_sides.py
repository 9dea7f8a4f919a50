"""Descriptors for the reference pump: sides, waiting for them, and rates.

The three things below `rtunnel._pump_py` that know nothing of pairs and ports.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from rtunnel._pump_types import End, Pipes, poller_error

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_NOSIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
NS: Final = 1_000_000_000


class Bucket:
    """A token bucket in whole numbers: pure arithmetic, the clock is the caller's.

    Credit is counted in byte-nanoseconds, so nothing is lost to rounding. What moves
    at once is worth 5 ms at least, and a caller that comes up to 50 ms late loses
    nothing; longer pauses are not saved up. It starts empty.
    """

    __slots__ = ("_credit", "_limit", "_quantum", "_rate", "_then_ns")

    def __init__(self, rate_bytes_s: int, now_ns: int) -> None:
        self._rate = rate_bytes_s
        self._quantum = max(rate_bytes_s // 200, 1) * NS
        self._limit = self._quantum + rate_bytes_s * (NS // 20)
        self._credit = 0
        self._then_ns = now_ns

    def available(self, now_ns: int) -> int:
        """Return how many bytes may move now: 0, or at least 5 ms worth of them."""
        if now_ns > self._then_ns:
            elapsed = now_ns - self._then_ns
            self._then_ns = now_ns
            self._credit = min(self._credit + elapsed * self._rate, self._limit)
        return self._credit // NS if self._credit >= self._quantum else 0

    def spend(self, n: int) -> None:
        """Take `n` bytes, at most what `available` said."""
        self._credit -= n * NS

    def ready_at_ns(self) -> int:
        """Return the time from which `available` is not 0."""
        missing = max(self._quantum - self._credit, 0)
        return self._then_ns + -(-missing // self._rate)


class Share:
    """One rate for several takers: a bucket, and the line of those who wait for it.

    Who asks while nobody waits gets what the bucket has; else it stands in line, until
    it is called for a turn, which is a quantum of the bucket at most. So all get the
    same, and the rate is kept by all of them together. (src/pump/share.h)
    """

    __slots__ = ("_bucket", "_line", "_quantum", "_turns")

    def __init__(self, rate_bytes_s: int, now_ns: int) -> None:
        self._bucket = Bucket(rate_bytes_s, now_ns)
        self._quantum = max(rate_bytes_s // 200, 1)
        # An ordered set, as dicts are.
        self._line: dict[object, None] = {}
        self._turns: set[object] = set()

    def ask(self, taker: object, now_ns: int) -> int:
        """Return how many bytes `taker` may move now; 0: it stands in line."""
        allowed = 0
        if not self._line or taker in self._turns:
            allowed = self._bucket.available(now_ns)
        if self._line:
            allowed = min(allowed, self._quantum)
        self._turns.discard(taker)
        if allowed == 0:
            self._line[taker] = None
        return allowed

    def spend(self, n: int) -> None:
        """Take `n` bytes, at most what `ask` said."""
        self._bucket.spend(n)

    def call(self, now_ns: int) -> list[Any]:
        """Give turns to those who may go on, and take them out of the line."""
        count = self._bucket.available(now_ns) // self._quantum
        called = list(self._line)[:count]
        for taker in called:
            del self._line[taker]
        self._turns.update(called)
        return called

    def leave(self, taker: object) -> None:
        """Forget a taker: it is over."""
        self._line.pop(taker, None)
        self._turns.discard(taker)

    def ready_at_ns(self) -> int | None:
        """Return the time from which somebody can be called; None: nobody waits."""
        return self._bucket.ready_at_ns() if self._line else None


class Side:
    """The descriptors of one end, and what they can do as far as we know."""

    __slots__ = ("hung_up", "read_fd", "readable", "sock", "writable", "write_fd")

    def __init__(self, end: End) -> None:
        self.sock: socket.socket | None = None
        if isinstance(end, Pipes):
            self.read_fd, self.write_fd = end
        else:
            self.sock = socket.socket(fileno=end.detach())
            self.read_fd = self.write_fd = self.sock.fileno()
            if self.sock.family in (socket.AF_INET, socket.AF_INET6):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for fd in {self.read_fd, self.write_fd}:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        self.readable = self.writable = True
        self.hung_up: set[int] = set()

    def fds(self) -> set[int]:
        return {self.read_fd, self.write_fd} - {-1}

    def wants(self, fd: int) -> tuple[bool, bool]:
        """Return what `fd` is blocked on: (reading, writing)."""
        return (
            fd == self.read_fd and not self.readable,
            fd == self.write_fd and not self.writable,
        )

    def note(self, fd: int, readable: bool, writable: bool, broken: bool) -> int:
        """Note an event of `fd`; return the socket's pending error, or 0."""
        if (readable or broken) and fd == self.read_fd:
            self.readable = True
        if (writable or broken) and fd == self.write_fd:
            self.writable = True
        if not broken:
            return 0
        self.hung_up.add(fd)
        if self.sock is None:
            return 0
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def read(self, limit: int) -> bytes | None:
        """Read up to `limit` bytes; b"" is the end, None: nothing there now."""
        try:
            if self.sock is not None:
                return self.sock.recv(limit)
            return os.read(self.read_fd, limit)
        except BlockingIOError:
            self.readable = False
            return None

    def at_eof(self) -> bool:
        """Look whether the next read would be the end, without taking a byte."""
        assert self.sock is not None
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            self.readable = False
            return False

    def write(self, data: bytes | memoryview) -> int:
        """Write what fits; 0 when nothing does."""
        try:
            if self.sock is not None:
                return self.sock.send(data, _NOSIGNAL)
            return os.write(self.write_fd, data)
        except BlockingIOError:
            self.writable = False
            return 0

    def close(self, *, reset: bool = False) -> None:
        if self.sock is None:
            for fd in self.fds():
                os.close(fd)
        else:
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.sock.close()
        self.read_fd = self.write_fd = -1


class MaskPoller:
    """epoll(7) or poll(2): both report hang-ups even for an empty mask."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._poll: select.epoll | select.poll
        self._timeout_unit = 1
        self._masks: dict[int, int] = {}
        self._close: Callable[[], None] | None = None
        if name == "epoll":
            epoll = select.epoll()
            self._poll, self._close = epoll, epoll.close
        else:
            self._poll = select.poll()
            self._timeout_unit = 1000

    def watch(self, fd: int, read: bool, write: bool, hung_up: bool) -> None:
        mask = (read and select.POLLIN) | (write and select.POLLOUT)
        if hung_up:
            # It would be reported without end, and tells nothing new.
            self.forget(fd)
        elif fd not in self._masks:
            self._poll.register(fd, mask)
            self._masks[fd] = mask
        elif self._masks[fd] != mask:
            self._poll.modify(fd, mask)
            self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        if self._masks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, timeout_s: float | None) -> list[tuple[int, bool, bool, bool]]:
        timeout = None if timeout_s is None else timeout_s * self._timeout_unit
        return [
            (
                fd,
                bool(mask & select.POLLIN),
                bool(mask & select.POLLOUT),
                bool(mask & (select.POLLERR | select.POLLHUP)),
            )
            for fd, mask in self._poll.poll(timeout)
        ]

    def close(self) -> None:
        if self._close is not None:
            self._close()


class SelectPoller:
    """select(2): hang-ups show as readable or writable, to those who wait for that."""

    name = "select"

    def __init__(self) -> None:
        self._read: set[int] = set()
        self._write: set[int] = set()

    def watch(self, fd: int, read: bool, write: bool, hung_up: bool) -> None:
        (self._read.add if read else self._read.discard)(fd)
        (self._write.add if write else self._write.discard)(fd)

    def forget(self, fd: int) -> None:
        self._read.discard(fd)
        self._write.discard(fd)

    def wait(self, timeout_s: float | None) -> list[tuple[int, bool, bool, bool]]:
        read, write, _ = select.select(self._read, self._write, [], timeout_s)
        return [(fd, fd in read, fd in write, False) for fd in {*read, *write}]

    def close(self) -> None:
        pass


def make_poller(name: str) -> MaskPoller | SelectPoller:
    """Return a poller by name; "auto" is the best that this system has."""
    if name not in ("auto", "epoll", "poll", "select"):
        raise poller_error(name)
    if name == "auto":
        name = next(n for n in ("epoll", "poll", "select") if hasattr(select, n))
    return SelectPoller() if name == "select" else MaskPoller(name)
