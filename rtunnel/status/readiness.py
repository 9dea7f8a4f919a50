"""Say whether listeners really listen: visit them through their servers.

A self-test costs a few round trips, so that its answer is kept for a while, whoever
asks, and a server that allows none is not asked again. Of very many listeners, a part
is tested each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from weakref import WeakKeyDictionary

from rtunnel.errors import RTunnelError
from rtunnel.tunnel import Listener, ListenerState, Tunnel
from rtunnel.tunnel.selftest import Outcome, self_test

# An answer is good for so long; probes of an orchestrator come every 10 s or so.
KEPT_S: Final = 5.0
# Tested at a time, and at the same time. sshd takes 10 sessions of a connection by
# default, but forwards without a limit.
LISTENERS_PER_CHECK: Final = 64
TEST_TIMEOUT_S: Final = 5.0
THREADS: Final = 8


class SelfTests:
    """Tests the listeners of tunnels; a `ReadyCheck`. Any thread; blocks.

    `tunnels` returns those that stand, each with the name that is shown for it.
    """

    def __init__(self, tunnels: Callable[[], Iterable[tuple[str, Tunnel]]]) -> None:
        self._tunnels = tunnels
        # One check at a time; who asks meanwhile gets the same answer.
        self._lock = threading.Lock()
        self._asked_s: float | None = None
        self._seen: WeakKeyDictionary[Listener, str | None] = WeakKeyDictionary()
        self._not_allowed: WeakKeyDictionary[Listener, bool] = WeakKeyDictionary()

    def __call__(self) -> list[str]:
        """Return a line for each listener that does not answer."""
        with self._lock:
            listening = [
                (name, listener)
                for name, tunnel in self._tunnels()
                for listener in tunnel.listeners
                if listener.state is ListenerState.LISTENING
            ]
            if self._asked_s is None or time.monotonic() - self._asked_s >= KEPT_S:
                self._check([listener for _, listener in listening])
                self._asked_s = time.monotonic()
            return [
                f"{name} {listener.name}: {why}"
                for name, listener in listening
                if (why := self._seen.get(listener)) is not None
                and listener.state is ListenerState.LISTENING
            ]

    def _check(self, listeners: list[Listener]) -> None:
        # Those that were never seen come first, then those that were seen long ago:
        # a dictionary keeps the order in which its keys came.
        order = {listener: number for number, listener in enumerate(self._seen)}
        due = [each for each in listeners if each not in self._not_allowed]
        due.sort(key=lambda listener: order.get(listener, -1))
        due = due[:LISTENERS_PER_CHECK]
        if not due:
            return
        silent: dict[Tunnel, str] = {}
        with ThreadPoolExecutor(THREADS, "rtunnel-selftest") as pool:
            reasons = pool.map(lambda listener: self._test(listener, silent), due)
            for listener, why in zip(due, reasons, strict=True):
                self._seen.pop(listener, None)
                self._seen[listener] = why

    def _test(self, listener: Listener, silent: dict[Tunnel, str]) -> str | None:
        """Return why it does not listen, or None.

        `silent` has the tunnels whose servers do not answer: each of their listeners
        would be waited for in vain.
        """
        if listener.tunnel in silent:
            return silent[listener.tunnel]
        try:
            outcome = self_test(listener, TEST_TIMEOUT_S)
        except RTunnelError as error:
            return silent.setdefault(listener.tunnel, f"the self-test failed: {error}")
        except OSError as error:
            return f"the self-test failed: {error.strerror or error}"
        if outcome is Outcome.NOT_ALLOWED:
            self._not_allowed[listener] = True
        if outcome is Outcome.SILENT:
            return "the server says it listens, but no connection comes from there"
        return None
