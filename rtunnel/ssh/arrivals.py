"""Channels that the peer opens: undecided until somebody accepts or rejects them.

Admission comes before confirmation: the visitor's connection is only confirmed when
its target answers, so that a dead one can be told from a live one over there.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paramiko
from paramiko.message import Message

from rtunnel.errors import OpenFailureCode
from rtunnel.forwards import Forward
from rtunnel.ssh.relay import OnEnd, PeerSide, Priority, RateLimit, Relay

if TYPE_CHECKING:
    from rtunnel.ssh.connection import Connection


@dataclass(frozen=True, slots=True)
class Arrival:
    """An open of the peer, and the place it says the visitor came to."""

    message: Message
    kind: str
    peer: PeerSide
    address: str
    port: int
    origin: tuple[str, int]


class ChannelOpen:
    """An open of the peer that nobody has decided yet.

    Exactly one of `accept`, `accept_channel` and `reject` may be called, on any
    thread, sooner or later; none of them blocks.
    """

    def __init__(
        self,
        connection: Connection,
        kind: str,
        forward: Forward,
        origin: tuple[str, int],
        peer: PeerSide,
    ) -> None:
        self.kind = kind
        self.forward = forward
        self.origin = origin
        self.peer = peer
        self._connection = connection
        self._lock = threading.Lock()
        self._decided = False

    def accept(
        self,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        priority: Priority = "auto",
        limit: RateLimit | None = None,
    ) -> Relay:
        """Confirm the channel and pump between it and `sock`, which is owned now."""
        self._decide()
        return self._connection.backend.accept(
            self.peer, sock, on_end, priority, limit=limit
        )

    def accept_channel(self, then: Callable[[paramiko.Channel], object]) -> None:
        """Confirm the channel as one of paramiko's own, then call `then` with it.

        Not before: what `then` does with the channel must not overtake the
        confirmation. It runs on a thread that must not be kept, and has to keep the
        channel alive.
        """
        self._decide()
        self._connection.confirm_stock_channel(self.peer, then)

    def reject(self, code: OpenFailureCode, reason: str) -> None:
        """Refuse the channel; `reason` is text for the peer's log."""
        self._decide()
        self._connection.send_open_failure(self.peer, code, reason)

    def _decide(self) -> None:
        with self._lock:
            if self._decided:
                raise RuntimeError("this channel open was accepted or rejected before")
            self._decided = True
        self._connection.note_decided()


OnOpen = Callable[[ChannelOpen], None]
