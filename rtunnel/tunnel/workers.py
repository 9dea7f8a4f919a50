"""The threads that the handlers of one tunnel share: each is made when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from rtunnel.pump import PairEnd, PairLike, ReactorLike, implementation
from rtunnel.tunnel.dialler import Dialler
from rtunnel.tunnel.idle import IdleWatch


class CoroutineRunner(Protocol):
    """Where coroutines of handlers run."""

    def run(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Start a coroutine; False (and the coroutine closed) after `close`.

        Raises OSError, the coroutine closed, when the loop lacks descriptors.
        """

    def close(self, *, cancel: bool) -> None:
        """Take no more; `cancel` breaks off those that still run. Never blocks."""

    def join(self, timeout_s: float) -> None:
        """Wait for what ends with it, unless that is the caller."""


class Workers:
    """The threads that the handlers of one tunnel share."""

    def __init__(self) -> None:
        self.dialler = Dialler()
        # User code runs on the first one, and may keep it: ours does not wait for it.
        self.loop: CoroutineRunner = LoopThread("rtunnel-asyncio")
        self.services = LoopThread("rtunnel-services")
        self.pairs = PairThread()
        self.idle = IdleWatch()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def start(self, name: str, function: Callable[[], None]) -> None:
        """Run a function on a thread of its own. Raises RuntimeError if none starts."""

        def run() -> None:
            try:
                function()
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._threads.discard(thread)
            raise

    def close(self, *, cancel: bool) -> None:
        """End the shared threads; `cancel` breaks off coroutines that still run."""
        self.dialler.close()
        self.loop.close(cancel=cancel)
        self.services.close(cancel=cancel)
        self.pairs.close(cancel=cancel)
        self.idle.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads: `timeout_s` for each of those that run user code."""
        for shared in (self.dialler, self.loop, self.services, self.pairs, self.idle):
            shared.join(timeout_s)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout_s)


class LoopThread:
    """One asyncio loop on a thread of its own, made with the first coroutine."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Protected by _lock.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        # Only on the loop's thread.
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Start a coroutine; False (and the coroutine closed) after `close`."""
        with self._lock:
            if self._closed:
                coroutine.close()
                return False
            if self._loop is None:
                try:
                    self._loop = asyncio.new_event_loop()
                except OSError:
                    coroutine.close()
                    raise
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
            self._loop.call_soon_threadsafe(self._start, coroutine)
            return True

    def close(self, *, cancel: bool) -> None:
        """End the thread when the coroutines are done; `cancel` breaks them off."""
        with self._lock:
            self._closed = True
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._stop, cancel)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, unless it is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            with self._lock:
                loop.close()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._closed and not self._tasks:
            asyncio.get_running_loop().stop()

    def _stop(self, cancel: bool) -> None:
        if not self._tasks:
            asyncio.get_running_loop().stop()
        elif cancel:
            for task in self._tasks:
                task.cancel()


class LoopOf:
    """A loop that runs already, of somebody else: it stays when the tunnel ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        # Only on the loop's thread.
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Start a coroutine; False (and the coroutine closed) after `close`."""
        try:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._start, coroutine)
                return True
        except RuntimeError:  # the loop is closed
            pass
        coroutine.close()
        return False

    def close(self, *, cancel: bool) -> None:
        """Take no more; `cancel` breaks off those that still run. Never blocks."""
        self._closed = True
        if cancel:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel)

    def join(self, timeout_s: float) -> None:
        """Wait for nothing: the loop is not ours."""

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class PairThread:
    """A reactor on a thread of its own, for sockets that are joined without SSH."""

    def __init__(self) -> None:
        # Protected by _lock.
        self._lock = threading.Lock()
        self._reactor: ReactorLike | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._live = 0

    def join_sockets(
        self, a: socket.socket, b: socket.socket, on_end: Callable[[PairEnd], None]
    ) -> PairLike | None:
        """Relay between two sockets, owned from here on; None (closed) after `close`.

        `on_end` is called once, on the reactor's thread. Never blocks, any thread.
        """

        def ended(end: PairEnd) -> None:
            with self._lock:
                self._live -= 1
                last = self._closed and self._live == 0
            on_end(end)
            if last:
                self._end()

        with self._lock:
            if self._closed:
                a.close()
                b.close()
                return None
            if self._reactor is None:
                self._reactor = _make_reactor()
                self._thread = threading.Thread(
                    target=self._reactor.run, name="rtunnel-pairs", daemon=True
                )
                self._thread.start()
            self._live += 1
        return self._reactor.add_pair(a, b, ended)

    def close(self, *, cancel: bool) -> None:
        """End the thread when the pairs have ended; `cancel` resets them."""
        with self._lock:
            self._closed = True
            wait = self._live > 0 and not cancel
        if not wait:
            self._end()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, unless it is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _end(self) -> None:
        if self._reactor is not None:
            self._reactor.close()


def _make_reactor() -> ReactorLike:
    try:
        return implementation("pump").Reactor()
    except ImportError:  # as backend="auto": the reference, where nothing is compiled
        return implementation("python").Reactor()
