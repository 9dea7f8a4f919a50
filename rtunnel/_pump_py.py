"""The pump in Python: the reference that `rtunnel._pump` is compared with.

Theory of operation

* A *port* has memory on one side and a socket on the other; a *pair* has two ends
  that are descriptors. The reactor moves bytes for many of both and decides nothing.
* Readiness is a hint that is kept, not asked for: an end is taken to be readable and
  writable until the kernel answers EAGAIN, and only then waited for. So a wait lists
  only what is really blocked, and one that nobody reads costs nothing.
* A descriptor that waits for nothing stays registered with an empty mask: epoll(7) and
  poll(2) then still report a reset, which has to end a port at once even while it has
  no grant. (`selectors` cannot express that, so the `select` module is used as it is;
  with select(2) itself such a reset is noticed at the next read or write.)
* Locking: one lock per reactor guards everything below it. It is held during system
  calls, none of which blocks, and never during callbacks: these are queued as reports
  and made afterwards by the reactor's thread, so that they may call back into it.
* Descriptors are closed by the reactor's thread only, between two waits: an event can
  never reach a stranger that got the same number. Ends are non-blocking and CLOEXEC.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from rtunnel._pump_entries import Entry, Pair, Port, Rate, Report
from rtunnel._pump_sides import NS, Side, make_poller
from rtunnel._pump_types import (
    ABORTED,
    SELECT_MAX_FDS,
    End,
    PairEnd,
    PollerName,
    PortEvents,
    RelayTotals,
    check_ends,
    check_rate,
    check_socket,
    closed_error,
    foreign_rate,
    log,
    relay_with,
    select_error,
)


class Reactor:
    """One loop that moves bytes for many pairs and ports.

    `run()` belongs to one thread of the owner; everything else may be called from any
    thread, and from callbacks, and never blocks.
    """

    def __init__(self, poller: PollerName = "auto") -> None:
        self._lock = threading.RLock()
        self._poller = make_poller(poller)
        self._wake_read, self._wake_write = socket.socketpair()
        for sock in (self._wake_read, self._wake_write):
            sock.setblocking(False)
        self._poller.watch(self._wake_read.fileno(), True, False, False)
        self._live: set[Entry] = set()
        self._by_fd: dict[int, tuple[Entry, Side]] = {}
        # Entries to step, in order; a dict because that is Python's ordered set.
        self._ready: dict[Entry, None] = {}
        self._throttled: set[Entry] = set()
        self._rates: set[Rate] = set()  # that ports wait for
        self._reports: list[tuple[Entry, Report]] = []
        self._waiting = False  # in poller.wait(): a wake-up is needed
        self._running = False
        self._closing = False
        self._released = False

    @property
    def poller(self) -> str:
        """The name of the poller in use: "epoll", "poll" or "select"."""
        return self._poller.name

    def add_pair(
        self,
        a: End,
        b: End,
        on_end: Callable[[PairEnd], None] | None = None,
        rate_bytes_s: int | None = None,
    ) -> Pair:
        """Join two ends: each one's bytes, end of stream and reset go to the other.

        Owns and closes both from here on: a socket is detached from its object.
        `rate_bytes_s` limits each direction by itself. `on_end` is called once, on the
        reactor's thread. Raises RuntimeError when closed, TypeError and ValueError for
        ends that cannot be pumped; these remain the caller's.
        """
        rate = check_rate(rate_bytes_s)
        end_a, end_b = check_ends(a, b)
        fds = {*end_a[:2], *end_b[:2]}
        with self._lock:
            self._check_open(fds)
            pair = Pair(self, Side(a), Side(b), on_end, rate)
            self._add(pair)
            return pair

    def add_rate(self, rate_bytes_s: int) -> Rate:
        """Return a rate for ports, which keep it together, in each direction by itself.

        Raises ValueError for a rate that cannot be kept.
        """
        return Rate(self, check_rate(rate_bytes_s))

    def add_port(
        self, sock: socket.socket, events: PortEvents, rate: Rate | None = None
    ) -> Port:
        """Join a socket to memory: `Port.feed` writes, `events` tell what was read.

        Owns and closes the socket from here on. Nothing is read before `grant()`.
        Raises as `add_pair`, and ValueError for the rate of another reactor.
        """
        fd = check_socket(sock)
        if rate is not None and rate._reactor is not self:
            raise foreign_rate()
        with self._lock:
            self._check_open({fd})
            port = Port(self, sock, events, rate)
            self._add(port)
            return port

    def run(self) -> None:
        """Move bytes and make callbacks on this thread until `close()`.

        Raises RuntimeError when it runs already. An exception that is no Exception,
        such as KeyboardInterrupt, comes out behind the callbacks that were due.
        """
        with self._lock:
            if self._released or (self._closing and self._running):
                return
            if self._running:
                raise RuntimeError("the reactor runs already")
            self._running = True
        try:
            while not self._closing:
                self._turn()
                self._deliver()
            self._release()
        finally:
            with self._lock:
                self._running = False

    def close(self) -> None:
        """Reset what is left, and end `run()`; `on_end` of each is still called.

        Never blocks: join the thread of `run()` to know that all is gone. Where it
        does not run, the callbacks are made here.
        """
        with self._lock:
            self._closing = True
            self._wake()
            if self._running or self._released:
                return
            self._running = True
        try:
            self._release()
        finally:
            self._running = False

    # Called by entries, under the lock.

    def _touch(self, entry: Entry) -> None:
        if not entry._ended:
            self._ready[entry] = None
            self._wake()

    def _wait_for(self, rate: Rate) -> None:
        self._rates.add(rate)

    def _report(self, entry: Entry, report: Report) -> None:
        self._reports.append((entry, report))

    def _remove(self, entry: Entry) -> None:
        for side in entry._sides:
            for fd in side.fds():
                self._poller.forget(fd)
                del self._by_fd[fd]
        self._live.discard(entry)
        self._ready.pop(entry, None)
        self._throttled.discard(entry)

    # The loop.

    def _check_open(self, fds: set[int]) -> None:
        if self._closing:
            raise closed_error()
        if self.poller == "select" and max(fds) >= SELECT_MAX_FDS:
            raise select_error()

    def _add(self, entry: Entry) -> None:
        self._live.add(entry)
        for side in entry._sides:
            for fd in side.fds():
                self._by_fd[fd] = (entry, side)
        self._touch(entry)

    def _wake(self) -> None:
        if self._waiting:
            self._waiting = False
            self._wake_write.send(b"\0")

    def _turn(self) -> None:
        """Wait for events, then step everything that has something to do."""
        with self._lock:
            timeout_s = self._timeout_s()
            self._waiting = timeout_s is None or timeout_s > 0
        events = self._poller.wait(timeout_s)
        with self._lock:
            self._waiting = False
            for fd, readable, writable, broken in events:
                if fd == self._wake_read.fileno():
                    self._wake_read.recv(64)
                elif fd in self._by_fd:
                    entry, side = self._by_fd[fd]
                    entry._note(side, side.note(fd, readable, writable, broken))
                    self._ready[entry] = None
            now_ns = time.monotonic_ns()
            for entry in list(self._throttled):
                if entry._due_ns is not None and entry._due_ns <= now_ns:
                    self._ready[entry] = None
            self._call_waiting(now_ns)
            due, self._ready = self._ready, {}
            for entry in due:
                if not entry._ended:
                    self._step(entry, now_ns)

    def _call_waiting(self, now_ns: int) -> None:
        """Have ports stepped whose rate allows it; forget rates nobody waits for."""
        for rate in list(self._rates):
            due_ns = rate._due_ns()
            if due_ns is None:
                self._rates.discard(rate)
            elif due_ns <= now_ns:
                self._ready.update(dict.fromkeys(rate._call(now_ns)))

    def _timeout_s(self) -> float | None:
        if self._ready or self._closing:
            return 0
        dues = [entry._due_ns for entry in self._throttled]
        dues += [rate._due_ns() for rate in self._rates]
        due = min((due for due in dues if due is not None), default=None)
        return None if due is None else max(due - time.monotonic_ns(), 0) / NS

    def _step(self, entry: Entry, now_ns: int) -> None:
        more = entry._step(now_ns)
        if entry._ended:
            return
        if more:
            self._ready[entry] = None
        (self._throttled.discard if entry._due_ns is None else self._throttled.add)(
            entry
        )
        for side in entry._sides:
            for fd in side.fds():
                self._poller.watch(fd, *side.wants(fd), fd in side.hung_up)

    def _deliver(self) -> None:
        """Make the callbacks that are due: no lock is held."""
        with self._lock:
            reports, self._reports = self._reports, []
        interrupt: BaseException | None = None
        for entry, report in reports:
            try:
                report()
            except Exception:
                log.exception("a callback of %r failed; it is reset", entry)
                entry.reset()
            except BaseException as exc:
                interrupt = exc
                entry.reset()
        if interrupt is not None:
            raise interrupt

    def _release(self) -> None:
        """Reset every entry, tell their owners, give the descriptors back."""
        with self._lock:
            for entry in list(self._live):
                entry._finish(entry._error or ABORTED)
            self._released = True
            self._poller.close()
            self._wake_read.close()
            self._wake_write.close()
        self._deliver()


def relay(a: End, b: End, *, rate_bytes_s: int | None = None) -> RelayTotals:
    """Move bytes between two ends until both directions have ended.

    Owns and closes both. The end of one direction is passed on behind its last byte,
    while the other goes on. `rate_bytes_s` limits each direction by itself. Blocks.

    Raises OSError when a side broke; the other one was reset, too.
    """
    return relay_with(Reactor(), a, b, rate_bytes_s)
