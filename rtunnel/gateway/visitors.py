"""A visitor, and the counters of a listener."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rtunnel.errors import ChannelOpenError, ConnectionLost
from rtunnel.ssh.relay import Relay, RelayEnd

# From when on a client that has not answered an open is asked last.
SLOW_ANSWER_S: Final = 1.0


class Visitor:
    """Somebody who has connected to a listener. Owns `sock` until it is handed on."""

    def __init__(
        self, sock: socket.socket, origin: tuple[str, int], is_shared: bool
    ) -> None:
        self.sock = sock
        self.origin = origin
        self.came_s = time.monotonic()
        # The listeners that could not take it.
        self.tried: set[object] = set()
        # A second descriptor, with which it can be offered to another client.
        self._spare = sock.dup() if is_shared else None

    def again(self) -> bool:
        """Have a socket again, the one before being closed; False: it is gone."""
        if self._spare is None or self._spare.fileno() < 0:
            return False
        self.sock = self._spare.dup()
        return True

    def settle(self) -> None:
        """Somebody has taken it, or nobody will."""
        if self._spare is not None:
            self._spare.close()

    def turn_away(self) -> None:
        """Close it: nobody takes it."""
        self.sock.close()
        self.settle()


@dataclass(frozen=True, slots=True)
class TrafficCount:
    """The counters of one listener at one time."""

    since: datetime
    connections_open: int
    connections_total: int
    refused: int
    errors: int
    bytes_in: int  # from visitors to the client
    bytes_out: int
    stalled: int  # visitors who send more than the client takes, right now
    last_error: str | None


class Traffic:
    """The visitors of one listener. Any thread."""

    def __init__(self) -> None:
        self._since = datetime.now(UTC)
        # Protected by _lock.
        self._lock = threading.Lock()
        self._asked: dict[Visitor, float] = {}  # in the order in which they came
        self._live: dict[Visitor, Relay] = {}
        self._total = 0
        self._refused = 0
        self._errors = 0
        self._bytes_in = 0
        self._bytes_out = 0
        self._last_error: str | None = None

    @property
    def open_count(self) -> int:
        """How many visitors are there, taken or waiting."""
        with self._lock:
            return len(self._asked) + len(self._live)

    def is_slow(self) -> bool:
        """Say whether the client leaves a visitor waiting for an answer."""
        with self._lock:
            first = next(iter(self._asked.values()), None)
        return first is not None and time.monotonic() - first > SLOW_ANSWER_S

    def ask(self, visitor: Visitor) -> None:
        """The client is asked to take a visitor."""
        with self._lock:
            self._asked[visitor] = time.monotonic()

    def opened(self, visitor: Visitor, relay: Relay) -> None:
        """The client took it."""
        with self._lock:
            self._total += 1
            # Not if it has ended meanwhile.
            if self._asked.pop(visitor, None) is not None:
                self._live[visitor] = relay

    def failed(
        self, visitor: Visitor, error: ChannelOpenError | ConnectionLost
    ) -> None:
        """The client did not take it."""
        with self._lock:
            self._asked.pop(visitor, None)
            self._errors += 1
            self._last_error = str(error)

    def refuse(self, reason: str) -> None:
        """Nobody was asked to take it."""
        with self._lock:
            self._refused += 1
            self._last_error = reason

    def ended(self, visitor: Visitor, end: RelayEnd) -> None:
        """It has gone."""
        with self._lock:
            self._asked.pop(visitor, None)
            self._live.pop(visitor, None)
            # A relay counts as seen from here: out is what went to the client.
            self._bytes_in += end.bytes_out
            self._bytes_out += end.bytes_in

    def count(self) -> TrafficCount:
        """Return the counters of now."""
        with self._lock:
            live = tuple(self._live.values())
            ended = self._bytes_in, self._bytes_out
            waiting = len(self._asked)
        return TrafficCount(
            since=self._since,
            connections_open=len(live) + waiting,
            connections_total=self._total,
            refused=self._refused,
            errors=self._errors,
            bytes_in=ended[0] + sum(relay.bytes_out for relay in live),
            bytes_out=ended[1] + sum(relay.bytes_in for relay in live),
            stalled=sum(relay.stalled for relay in live),
            last_error=self._last_error,
        )


def address_of(sock_address: object) -> tuple[str, int]:
    """Return address and port of what accept() says; of a Unix socket, nothing.

    An address of IPv4 looks like one, also on a socket of IPv6.
    """
    if isinstance(sock_address, tuple):
        host = str(sock_address[0]).removeprefix("::ffff:")
        return (host if "." in host else str(sock_address[0]), int(sock_address[1]))
    return ("", 0)
