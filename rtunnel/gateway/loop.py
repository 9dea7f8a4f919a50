"""One thread for sockets that become readable, for calls, and for timers.

What belongs to the loop is touched on its thread only, and so needs no locks; other
threads hand it functions by `call`. Nothing that runs here may block. A function that
raises is logged: it must not take the sockets of everybody else with it.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

log = logging.getLogger("rtunnel.gateway.loop")

WAKE_BYTES: Final = 4096
# Connections taken from one listening socket before the others have their turn.
ACCEPTS_PER_TURN: Final = 32
# How long a listening socket rests when there are no descriptors left; as sshd
# (channels.c).
ACCEPT_PAUSE_S: Final = 1.0

_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Function = Callable[[], object]
OnConnection = Callable[[socket.socket, Any], object]


class Timer:
    """A call that is due later, unless it is cancelled. Only on the loop's thread."""

    def __init__(self, function: Function) -> None:
        self.function: Function | None = function

    def cancel(self) -> None:
        """Do not call; let go of what the function refers to."""
        self.function = None


class Loop:
    """The thread. `call`, `close` and `join` are for any thread; the rest is not."""

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # Only on the loop's thread.
        self._selector: selectors.BaseSelector
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._resting: dict[socket.socket, Timer] = {}
        # Protected by _lock.
        self._lock = threading.Lock()
        self._calls: deque[Function] = deque()
        self._closed = False
        self._wake_read: socket.socket | None = None
        self._wake_write: socket.socket | None = None

    def start(self) -> None:
        """Start the thread, which runs until `close`."""
        with self._lock:
            self._selector = selectors.DefaultSelector()
            self._wake_read, self._wake_write = socket.socketpair()
            self._wake_read.setblocking(False)
            self._wake_write.setblocking(False)
            self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._thread.start()

    def call(self, function: Function) -> bool:
        """Have `function` called on the loop's thread, in the order of the calls.

        Never blocks. False: the loop is closed, and it will not be called.
        """
        with self._lock:
            if self._closed:
                return False
            self._calls.append(function)
            self._wake()
        return True

    def call_later(self, delay_s: float, function: Function) -> Timer:
        """Have `function` called after `delay_s`."""
        timer = Timer(function)
        due_s = time.monotonic() + delay_s
        heapq.heappush(self._timers, (due_s, next(self._order), timer))
        return timer

    def serve(self, server: socket.socket, on_connection: OnConnection) -> None:
        """Accept from a listening socket, which does not block.

        `on_connection` gets each new socket, and the address it comes from.
        """
        self._resting.pop(server, None)
        self._selector.register(
            server, selectors.EVENT_READ, partial(self._accept, server, on_connection)
        )

    def watch(self, sock: socket.socket, on_readable: Function) -> None:
        """Call a function whenever there is something to read, until `leave`."""
        self._selector.register(sock, selectors.EVENT_READ, on_readable)

    def leave(self, server: socket.socket) -> None:
        """Stop that; before the socket is closed."""
        timer = self._resting.pop(server, None)
        if timer is not None:
            timer.cancel()
        else:
            self._selector.unregister(server)

    def _accept(self, server: socket.socket, on_connection: OnConnection) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = server.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                # It stays in the queue, and the socket readable: do not spin.
                log.error("cannot accept connections for now: %s", error.strerror)
                self._selector.unregister(server)
                self._resting[server] = self.call_later(
                    ACCEPT_PAUSE_S, partial(self.serve, server, on_connection)
                )
                return
            on_connection(sock, address)

    def close(self) -> None:
        """Take no more calls; the thread ends when it has made those it has."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, if it was started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        # A full pipe has bytes in it, which is all that is wanted.
        if self._wake_write is not None:
            with contextlib.suppress(BlockingIOError):
                self._wake_write.send(b"\0")

    def _woken(self) -> None:
        assert self._wake_read is not None
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(WAKE_BYTES)

    def _run(self) -> None:
        while self._turn():
            pass
        self._timers.clear()
        self._resting.clear()
        self._selector.close()
        with self._lock:
            for end in (self._wake_read, self._wake_write):
                if end is not None:
                    end.close()
            self._wake_read = self._wake_write = None

    def _turn(self) -> bool:
        """Make the calls that are due; or wait. Returns False once closed.

        A call of its own: what a variable of this round holds, a connection that has
        ended, is not kept for the time of the next wait.
        """
        with self._lock:
            calls, self._calls = self._calls, deque()
            closed = self._closed
        for function in calls:
            self._guarded(function)
        if closed:
            return False
        if not calls:
            for key, _ in self._selector.select(self._until_due_s()):
                # One that an earlier function of this round has taken out again
                # may be closed, and its number be another's.
                if self._selector.get_map().get(key.fileobj) is key:
                    self._guarded(key.data)
        self._call_due()
        return True

    def _until_due_s(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _call_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.function is not None:
                self._guarded(timer.function)

    @staticmethod
    def _guarded(function: Function) -> None:
        try:
            function()
        except Exception:
            log.exception("a function on the loop failed")
