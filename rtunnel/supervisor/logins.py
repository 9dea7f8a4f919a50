"""A limit for logins that run at once, for each server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# sshd drops new connections from the 10th on that has not logged in (MaxStartups
# 10:30:100), and others log in there, too.
LOGINS_AT_ONCE: Final = 4


class Logins:
    """Lets `LOGINS_AT_ONCE` threads log in to one server; the others wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: Counter[str] = Counter()

    @contextmanager
    def turn(self, server: str, given_up: Callable[[], bool]) -> Iterator[bool]:
        """Wait for a turn to log in to `server`, which lasts as long as the block.

        Gives False, and no turn, once `given_up()` is true; `wake` lets it look.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: given_up() or self._running[server] < LOGINS_AT_ONCE
            )
            taken = not given_up()
            if taken:
                self._running[server] += 1
        try:
            yield taken
        finally:
            if taken:
                with self._changed:
                    self._running[server] -= 1
                    if not self._running[server]:
                        del self._running[server]
                    self._changed.notify_all()

    def wake(self) -> None:
        """Let those that wait look whether they still want to."""
        with self._changed:
            self._changed.notify_all()
