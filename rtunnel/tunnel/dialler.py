"""Dial targets without making anybody wait: one thread, many connects.

Theory of operation. A target that hangs must delay neither the transport nor another
listener, so every connect is non-blocking and all of them share one selector thread.
Only the lookup of a name may block (getaddrinfo knows no other way): it runs on a few
threads of its own, and not for addresses and `localhost`, which need none.

A name with several addresses is tried in the order of getaddrinfo. The next attempt
starts when one failed, or after `ATTEMPT_DELAY_S`, while the earlier ones go on; the
first that connects wins (RFC 8305, without its sorting).

A target on this machine has answered by the time connect() returns, and such a dial is
over before it needs the thread: most are, and a hand-over costs more than they do.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import ipaddress
import itertools
import logging
import os
import queue
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from rtunnel.addresses import LOOPBACK, Target, UnixTarget
from rtunnel.ssh.sockets import set_nodelay

log = logging.getLogger("rtunnel.tunnel.dialler")

# RFC 8305, section 5: the recommended Connection Attempt Delay.
ATTEMPT_DELAY_S: Final = 0.25
# A Unix socket whose backlog is full says EAGAIN and has no event to wait for.
UNIX_RETRY_S: Final = 0.02
RESOLVER_THREADS: Final = 4

OnDialled = Callable[[socket.socket | OSError], None]
_Address = tuple[int, object]  # family and what connect() takes
_Resolved = list[_Address] | OSError


class _NotTried(TimeoutError):
    """No address is known yet."""


class _Dial:
    """One call of `Dialler.dial`. Its caller's, then only the dialler's thread's."""

    def __init__(self, target: Target, deadline: float, on_done: OnDialled) -> None:
        self.target = target
        self.deadline = deadline
        self.on_done = on_done
        self.addresses: deque[_Address] = deque()
        self.attempts: set[socket.socket] = set()
        self.error: OSError = _NotTried(errno.ETIMEDOUT, "the lookup took too long")
        self.done = False


class Dialler:
    """Connects to targets; the thread starts with the first call of `dial`."""

    def __init__(self) -> None:
        self._resolver = _Resolver()
        # Protected by _lock.
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wake_write: socket.socket | None = None
        # Only on the dialler's thread.
        self._selector: selectors.BaseSelector
        self._dials: set[_Dial] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def dial(self, target: Target, timeout_s: float, on_done: OnDialled) -> None:
        """Connect to a target; never blocks, any thread.

        `on_done` is called once with the connected socket (blocking, TCP_NODELAY),
        or with the error of the last attempt. It runs on the dialler's thread, or
        here if the target answers at once or the dialler is closed, and must be quick.
        """
        dial = _Dial(target, time.monotonic() + timeout_s, on_done)
        if self._closed:
            on_done(_closed_error())
            return
        begun: socket.socket | OSError | None = None
        if (addresses := _without_lookup(target)) is not None:
            dial.addresses.extend(addresses)
            begun = _begin_attempt(dial)
            if isinstance(begun, OSError) and not dial.addresses:
                _give(dial, begun)
                return
            if isinstance(begun, socket.socket) and _has_answered(begun):
                code = begun.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    _give(dial, begun)
                    return
                begun.close()
                dial.error = _error(code)
                begun = None
        try:
            taken = self._call(lambda: self._begin(dial, begun))
            error = _closed_error()
        except OSError as shortage:  # its own descriptors are the ones that lack
            taken, error = False, shortage
        if not taken:
            if isinstance(begun, socket.socket):
                begun.close()
            on_done(error)

    def close(self) -> None:
        """Fail what is under way and end the thread. Never blocks."""
        with self._lock:
            self._closed = True
            self._wake()
        self._resolver.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, unless it is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _call(self, function: Callable[[], None]) -> bool:
        with self._lock:
            if self._closed:
                return False
            if self._thread is None:
                self._selector = selectors.DefaultSelector()
                try:
                    wake_read, self._wake_write = socket.socketpair()
                except OSError:
                    self._selector.close()
                    raise
                wake_read.setblocking(False)
                self._wake_write.setblocking(False)
                self._thread = threading.Thread(
                    target=self._run,
                    args=(wake_read,),
                    name="rtunnel-dialler",
                    daemon=True,
                )
                self._thread.start()
            self._calls.append(function)
            self._wake()
            return True

    def _wake(self) -> None:
        if self._wake_write is not None:
            # Full: it will wake up anyway.
            with contextlib.suppress(BlockingIOError):
                self._wake_write.send(b"\0")

    # On the dialler's thread.

    def _run(self, wake_read: socket.socket) -> None:
        self._selector.register(wake_read, selectors.EVENT_READ)
        while not self._closed:
            for key, _ in self._selector.select(self._until_timer()):
                if key.fileobj is wake_read:
                    wake_read.recv(4096)
                else:
                    self._connected(key.data, key.fileobj)  # type: ignore[arg-type]
            with self._lock:
                calls, self._calls = self._calls, deque()
            for call in calls:
                call()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
        with self._lock:
            calls, self._calls = self._calls, deque()
            assert self._wake_write is not None
            self._wake_write.close()
            self._wake_write = None
        for call in calls:
            call()
        for dial in list(self._dials):
            self._finish(dial, _closed_error())
        self._selector.close()
        wake_read.close()

    def _until_timer(self) -> float | None:
        if self._calls:
            return 0
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _at(self, when: float, function: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._order), function))

    def _begin(self, dial: _Dial, begun: socket.socket | OSError | None) -> None:
        """Go on with a dial; `begun` is its first attempt, if there was one."""
        self._dials.add(dial)
        self._at(dial.deadline, lambda: self._expire(dial))
        if isinstance(begun, socket.socket):
            self._await(dial, begun)
        elif dial.addresses or not isinstance(dial.error, _NotTried):
            self._attempt(dial)
        else:
            assert not isinstance(dial.target, UnixTarget)
            self._resolver.look_up(
                dial.target.host,
                dial.target.port,
                lambda result: self._call(lambda: self._resolved(dial, result)),
            )

    def _resolved(self, dial: _Dial, result: _Resolved) -> None:
        if isinstance(result, OSError):
            self._finish(dial, result)
        else:
            dial.addresses.extend(result)
            self._attempt(dial)

    def _attempt(self, dial: _Dial) -> None:
        """Start the next address; with none left, the last failure is the result."""
        while not dial.done and dial.addresses:
            begun = _begin_attempt(dial)
            if isinstance(begun, socket.socket):
                self._await(dial, begun)
                return
            if begun.errno == errno.EAGAIN:
                self._at(time.monotonic() + UNIX_RETRY_S, lambda: self._attempt(dial))
                return
        if not dial.done and not dial.attempts:
            self._finish(dial, dial.error)

    def _await(self, dial: _Dial, sock: socket.socket) -> None:
        dial.error = TimeoutError(errno.ETIMEDOUT, "it did not answer in time")
        dial.attempts.add(sock)
        self._selector.register(sock, selectors.EVENT_WRITE, dial)
        self._at(time.monotonic() + ATTEMPT_DELAY_S, lambda: self._attempt(dial))

    def _connected(self, dial: _Dial, sock: socket.socket) -> None:
        if sock not in dial.attempts:
            return  # won by another attempt in this same turn
        dial.attempts.remove(sock)
        self._selector.unregister(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            self._finish(dial, sock)
        else:
            sock.close()
            dial.error = _error(code)
            self._attempt(dial)

    def _expire(self, dial: _Dial) -> None:
        self._finish(dial, dial.error)

    def _finish(self, dial: _Dial, result: socket.socket | OSError) -> None:
        if dial.done:
            return
        dial.done = True
        self._dials.discard(dial)
        for sock in dial.attempts:
            self._selector.unregister(sock)
            sock.close()
        dial.attempts.clear()
        _give(dial, result)


class _Resolver:
    """Looks up names on up to `RESOLVER_THREADS` threads, made as they are needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[
            tuple[str, int, Callable[[_Resolved], object]] | None
        ] = queue.SimpleQueue()
        # Protected by _lock.
        self._waiting = 0  # jobs that no thread has taken
        self._idle = 0
        self._threads = 0
        self._closed = False

    def look_up(
        self, host: str, port: int, on_done: Callable[[_Resolved], object]
    ) -> None:
        with self._lock:
            self._jobs.put((host, port, on_done))
            self._waiting += 1
            if self._waiting > self._idle and self._threads < RESOLVER_THREADS:
                self._threads += 1
                threading.Thread(
                    target=self._run, name="rtunnel-resolver", daemon=True
                ).start()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._threads):
                    self._jobs.put(None)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            if job is None:
                return
            with self._lock:
                self._idle -= 1
                self._waiting -= 1
            host, port, on_done = job
            result: _Resolved
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                result = [(family, place) for family, _, _, _, place in found]
            except OSError as error:
                result = error
            except UnicodeError:
                result = OSError(errno.EINVAL, "not a host name")
            on_done(result)


def _done_before(result: socket.socket | OSError) -> None:
    raise RuntimeError("a dial has one result")


def _give(dial: _Dial, result: socket.socket | OSError) -> None:
    """Tell the result to whoever dialled."""
    if isinstance(result, socket.socket):
        result.setblocking(True)
        set_nodelay(result)
    # The timer of the deadline keeps the dial for a while, but not its owner.
    on_done, dial.on_done = dial.on_done, _done_before
    try:
        on_done(result)
    except Exception:
        log.exception("a dial callback failed: target=%s", dial.target)


def _begin_attempt(dial: _Dial) -> socket.socket | OSError:
    """Start the next addresses until one does not fail at once; it is under way then.

    Returns the error of the last one if all fail. EAGAIN: a Unix socket whose backlog
    is full, to be tried again; its address is still there.
    """
    while dial.addresses:
        family, place = dial.addresses.popleft()
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            dial.error = error
            continue
        sock.setblocking(False)
        code = _connect(sock, place)
        if code in (0, errno.EINPROGRESS):
            return sock
        sock.close()
        dial.error = _error(code)
        if code == errno.EAGAIN and family == socket.AF_UNIX:
            dial.addresses.append((family, place))
            return dial.error
    return dial.error


def _has_answered(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _connect(sock: socket.socket, place: object) -> int:
    try:
        return sock.connect_ex(place)  # type: ignore[arg-type]
    except OSError as error:
        return error.errno or errno.EIO


def _without_lookup(target: Target) -> list[_Address] | None:
    """Return the addresses of a target that needs no lookup, else None."""
    if isinstance(target, UnixTarget):
        return [(socket.AF_UNIX, target.path)]
    host, port = target.host, target.port
    if host == LOOPBACK:
        # RFC 6761, section 6.3; in the order that getaddrinfo has it.
        return [
            (socket.AF_INET6, ("::1", port)),
            (socket.AF_INET, ("127.0.0.1", port)),
        ]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return [(socket.AF_INET, (host, port))]
    if "%" in host:
        return None  # a scope: getaddrinfo knows the number of the interface
    return [(socket.AF_INET6, (host, port))]


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _closed_error() -> OSError:
    return OSError(errno.ECANCELED, "the tunnel is closed")
