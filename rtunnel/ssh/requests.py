"""Global requests and their replies (RFC 4254, section 4).

A reply carries no number: the peer answers in the order of the requests, so one queue
pairs them. Two things follow. A request enters the queue and the wire in one step,
and a request that nobody waits for any more keeps its place until its reply came.
A reply to nothing is dropped (x/crypto: CVE-2026-39830 deadlocked on one).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rtunnel.errors import ConnectionLost
from rtunnel.ssh import seams
from rtunnel.wire import boolean, string

log = logging.getLogger("rtunnel.ssh.requests")


@dataclass(frozen=True, slots=True)
class Granted:
    """REQUEST_SUCCESS and its payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """REQUEST_FAILURE, and the DEBUG messages that the peer sent just before it."""

    peer_said: tuple[str, ...]


Answer = Granted | Refused | ConnectionLost
OnAnswer = Callable[[Answer], None]


class RequestQueue:
    """The global requests of one connection that wait for their replies."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        # Makes the order of the queue that of the wire. Not needed to take a reply:
        # `popleft` is atomic, and only the transport's thread calls it.
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, OnAnswer]] = deque()
        self._lost: ConnectionLost | None = None

    def submit(self, kind: str, payload: bytes, on_answer: OnAnswer) -> None:
        """Send a request that wants a reply. Never blocks; any thread.

        `on_answer` is called once: on the transport's thread, or here when the
        connection is over.
        """
        packet = self._packet(kind, payload, want_reply=True)
        with self._lock:
            lost = self._lost
            if lost is None:
                self._waiting.append((kind, on_answer))
                self._send(packet)
        if lost is not None:
            on_answer(lost)

    def notify(self, kind: str, payload: bytes) -> None:
        """Send a request that wants no reply."""
        self._send(self._packet(kind, payload, want_reply=False))

    def answer(self, answer: Granted | Refused) -> None:
        """Give a reply to the request it belongs to. Only on the transport's thread."""
        try:
            kind, on_answer = self._waiting.popleft()
        except IndexError:
            log.warning(
                "dropped a reply to no request: reply=%s", type(answer).__name__
            )
            return
        log.debug("answered: request=%s reply=%s", kind, type(answer).__name__)
        on_answer(answer)

    def fail(self, lost: ConnectionLost) -> None:
        """The connection is over: answer everything that waits, and all to come."""
        with self._lock:
            self._lost = lost
            waiting = list(self._waiting)
            self._waiting.clear()
        for _, on_answer in waiting:
            on_answer(lost)

    @staticmethod
    def _packet(kind: str, payload: bytes, want_reply: bool) -> bytes:
        """Build the message.

        Payload::
            byte    SSH_MSG_GLOBAL_REQUEST
            string  kind
            boolean want reply
            ....    data of this kind
        """
        return (
            bytes([seams.MSG_GLOBAL_REQUEST])
            + string(kind)
            + boolean(want_reply)
            + payload
        )
