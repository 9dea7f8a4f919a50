"""What a backend is: it pairs channels with local sockets and moves their bytes."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from rtunnel.wire import Reader

BackendName = Literal["engine", "pump", "python"]
# Who goes first on a connection that several channels share; "auto": as it behaves.
Priority = Literal["auto", "interactive", "bulk"]


@dataclass(frozen=True, slots=True)
class PeerSide:
    """What the peer said about its end of a channel (RFC 4254, section 5.1)."""

    remote_id: int
    window_bytes: int
    max_packet_bytes: int


class RateLimit:
    """Bytes per second that all relays with this same object keep together.

    In each direction by itself.
    """

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self.key = next(_keys)


_keys = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RelayEnd:
    """How a relay ended, after both sides closed the channel or one broke it off.

    `reason` is "closed" when both sides finished in an orderly way, "reset" when one
    of them broke it off, "lost" when the connection went away under it.
    """

    bytes_in: int
    bytes_out: int
    reason: Literal["closed", "reset", "lost"]
    error: str | None = None


OnEnd = Callable[[RelayEnd], None]
# A request of the peer on a channel: its type, and a reader of what comes with it;
# returns whether it is granted. (RFC 4254, section 5.4)
OnRequest = Callable[[str, Reader], bool]


class Relay(Protocol):
    """One channel paired with one local socket.

    Every method may be called from any thread, and never blocks.
    """

    @property
    def local_id(self) -> int:
        """Our number of the channel."""

    @property
    def remote_id(self) -> int:
        """The peer's number of the channel."""

    @property
    def bytes_in(self) -> int:
        """Payload bytes from the peer to the local socket."""

    @property
    def bytes_out(self) -> int:
        """Payload bytes from the local socket to the peer."""

    @property
    def stalled(self) -> bool:
        """Whether it may send nothing now: the peer's window is used up."""

    @property
    def ended(self) -> bool:
        """Whether it is over: `on_end` is or was called."""

    def reset(self) -> None:
        """End it now: CLOSE goes out at once, the local socket is reset.

        Ends the wait for the peer's CLOSE, too, where only that is missing: nobody
        knows then whether the last bytes arrived, and the reason is "reset".
        """


class Opening(Protocol):
    """A channel that we open: its number is taken, the peer has not answered."""

    @property
    def local_id(self) -> int:
        """Our number of the channel."""

    def confirm(self, peer: PeerSide) -> Relay:
        """The peer confirmed: pump."""

    def cancel(self) -> None:
        """The peer refused, or is gone: free the number, close the socket."""


class Backend(Protocol):
    """Moves the bytes of the channels of one connection."""

    @property
    def name(self) -> BackendName:
        """Which one this is."""

    @property
    def is_idle(self) -> bool:
        """Whether none of its channels is open."""

    def accept(
        self,
        peer: PeerSide,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        priority: Priority = "auto",
        on_request: OnRequest | None = None,
        limit: RateLimit | None = None,
    ) -> Relay:
        """Confirm an open of the peer, then pump. Any thread; never blocks.

        Owns `sock` from the call on. `on_end` is called once, on a thread of the
        backend or the transport: it must be quick. Only the engine schedules:
        `priority` means nothing to the others. `on_request` decides about the peer's
        requests on the channel, all of which are refused without it; with it, call
        this on the transport's thread only, where `on_request` is called, too. `limit`
        is the rate that this relay keeps, together with the others that have it.
        """

    def reserve(self, sock: socket.socket, on_end: OnEnd | None = None) -> Opening:
        """Take a channel number for an open of ours. Owns `sock` from the call on."""

    def round_trips_s(self) -> tuple[float, float]:
        """Return the last round trip and the best one, measured while data moved.

        0 if none was. Never blocks. Any thread.
        """

    def close(self) -> None:
        """The connection ended: every relay ends as "lost"."""
