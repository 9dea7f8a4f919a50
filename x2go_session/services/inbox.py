"""Names of files that arrived, put aside until they have settled."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("x2go_session.services.inbox")


class Inbox:
    """Calls `settled(name)` for each name that was not added again for `settle_s`.

    On a thread of its own, which ends when there is nothing to wait for: whoever
    serves files to the server only has to leave the name.
    """

    def __init__(
        self, name: str, settled: Callable[[str], None], settle_s: float
    ) -> None:
        self._name = name
        self._settled = settled
        self._settle_s = settle_s
        # Protected by _changed.
        self._changed = threading.Condition()
        self._due: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, name: str) -> None:
        """Say that something happened to this name. Never blocks; any thread."""
        with self._changed:
            if self._closed:
                return
            due = time.monotonic() + self._settle_s
            if name not in self._due:
                heapq.heappush(self._queue, (due, name))
            self._due[name] = due
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"x2go-{self._name}-inbox", daemon=True
                )
                self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Forget what has not settled, and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                name = self._next()
            if name is None:
                return
            try:
                self._settled(name)
            except Exception:
                log.exception("not taken: inbox=%s", self._name)

    def _next(self) -> str | None:
        """Wait for the next name that settled; None when there are no more."""
        while self._queue and not self._closed:
            _, name = self._queue[0]
            left_s = self._due[name] - time.monotonic()
            if left_s > 0:
                # In its place by when it was added last.
                heapq.heapreplace(self._queue, (self._due[name], name))
                if self._queue[0][1] == name:
                    self._changed.wait(left_s)
                continue
            heapq.heappop(self._queue)
            del self._due[name]
            return name
        self._thread = None
        return None
