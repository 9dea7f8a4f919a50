"""Questions of a service to the user, which its end answers."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

from x2go_session.events import Events, Question

Answer = TypeVar("Answer")


class Questions:
    """The questions that are open; `close` answers each with None."""

    def __init__(self) -> None:
        # Protected by _lock.
        self._lock = threading.Lock()
        self._open: list[Question[Any]] = []
        self._closed = False

    def ask(
        self,
        events: Events,
        question: Question[Answer | None],
        default: Answer,
    ) -> Answer | None:
        """Ask, and wait for the answer; `default` where nobody answers in time.

        None once `close` was called. Blocks; any thread that may wait for a person.
        """
        with self._lock:
            if self._closed:
                return None
            self._open.append(question)
        try:
            return events.ask(question, default)
        finally:
            with self._lock:
                self._open.remove(question)

    def close(self) -> None:
        """Answer what is open, and what comes, with None. Never blocks."""
        with self._lock:
            self._closed = True
            for question in self._open:
                question.answer(None)
