"""End connections on which nothing moves: one thread that looks from time to time.

Looking is cheap, and telling each byte to a timer is not: so an idle connection ends
up to a quarter of its time late.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rtunnel.tunnel.listener import Listener

# A connection that moves is looked at so often within the time that it may be idle.
LOOKS: Final = 8
LONGEST_PAUSE_S: Final = 5.0


class IdleWatch:
    """Looks at the connections of listeners; the thread starts with the first one."""

    def __init__(self) -> None:
        # Protected by _changed.
        self._changed = threading.Condition()
        self._listeners: list[Listener] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, listener: Listener) -> None:
        """Watch a listener whose policy has an `idle_timeout_s`. Never blocks."""
        with self._changed:
            if self._closed:
                return
            self._listeners.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="rtunnel-idle", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def remove(self, listener: Listener) -> None:
        """Watch it no more: it is closed, and has no connection left."""
        with self._changed:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def close(self) -> None:
        """End the thread. Never blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, unless it is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                pauses = [
                    listener.policy.idle_timeout_s / LOOKS
                    for listener in self._listeners
                    if listener.policy.idle_timeout_s is not None
                ]
                self._changed.wait(min([*pauses, LONGEST_PAUSE_S]))
                if self._closed:
                    return
                listeners = list(self._listeners)
            now_s = time.monotonic()
            for listener in listeners:
                listener.end_idle(now_s)
