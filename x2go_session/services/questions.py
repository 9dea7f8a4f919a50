"""Questions of a service to the user, which its end answers."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

from x2go_session.errors import ServiceError
from x2go_session.events import Events, Question

Answer = TypeVar("Answer")


class NoAnswer(ServiceError):
    """The service was stopped before the user answered."""


class Questions:
    """The questions of a running service to the user."""

    def __init__(self) -> None:
        # Protected by _lock.
        self._lock = threading.Lock()
        self._open: list[Question[Any]] = []
        self._closed = False

    def ask(
        self, events: Events, question: Question[Answer], default: Answer
    ) -> Answer:
        """Ask, and wait for the answer; `default` where nobody answers in time.

        Blocks; any thread that may wait for a person. Raises `NoAnswer` after `close`.
        """
        with self._lock:
            if not self._closed:
                self._open.append(question)
        try:
            answer = default if self._closed else events.ask(question, default)
        finally:
            with self._lock:
                answered = question in self._open
                if answered:
                    self._open.remove(question)
        if not answered:
            raise NoAnswer("the session ended before there was an answer")
        return answer

    def close(self) -> None:
        """Let nobody wait any more. Never blocks."""
        with self._lock:
            self._closed = True
            for question in self._open:
                question.answer(None)
            self._open.clear()
