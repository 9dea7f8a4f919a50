"""The backend "engine": channels pumped in C inside of the transport."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from rtunnel import _engine
from rtunnel.errors import ConnectionLost, RequestTimeout
from rtunnel.ssh import seams
from rtunnel.ssh.packetizer import EndedChannels
from rtunnel.ssh.relay import (
    OnEnd,
    OnRequest,
    PeerSide,
    Priority,
    RateLimit,
    RelayEnd,
)
from rtunnel.ssh.transport import Transport
from rtunnel.window import (
    MAX_PACKET_BYTES,
    RECEIVE_WINDOW_BYTES,
    receive_window_bytes,
)
from rtunnel.wire import Reader, boolean, string, u32


class EngineRelay:
    """One channel that the engine pumps; see `rtunnel.ssh.relay.Relay`."""

    __slots__ = ("_end", "_engine", "_on_end", "local_id", "remote_id")

    def __init__(
        self,
        engine: _engine.Engine,
        local_id: int,
        remote_id: int,
        on_end: OnEnd | None,
    ) -> None:
        self._engine = engine
        self.local_id = local_id
        self.remote_id = remote_id
        self._on_end = on_end
        self._end: RelayEnd | None = None

    def _count(self, which: Literal[0, 1]) -> int:
        # An ended channel is unknown to the engine a moment before, or after, its end
        # is reported: look at both, the lasting one last.
        stats = self._engine.channel_stats(self.local_id)
        if self._end is not None:
            return (self._end.bytes_in, self._end.bytes_out)[which]
        return 0 if stats is None else stats[which]

    @property
    def bytes_in(self) -> int:
        """Payload bytes from the peer to the local socket."""
        return self._count(0)

    @property
    def bytes_out(self) -> int:
        """Payload bytes from the local socket to the peer."""
        return self._count(1)

    @property
    def stalled(self) -> bool:
        """Whether it may send nothing now: the peer's window is used up."""
        stats = self._engine.channel_stats(self.local_id)
        return stats is not None and stats[2] == 0

    @property
    def ended(self) -> bool:
        """Whether the local socket is done with."""
        return self._end is not None

    def reset(self) -> None:
        """Send CLOSE at once and reset the local socket. Never blocks. Any thread."""
        self._engine.reset(self.local_id)

    def finish(self, end: RelayEnd) -> None:
        """Take the last word on this relay; the engine's owner calls it once."""
        self._end = end
        if self._on_end is not None:
            self._on_end(end)


class EngineOpening:
    """A channel that we open; see `rtunnel.ssh.relay.Opening`."""

    def __init__(
        self,
        backend: EngineBackend,
        local_id: int,
        sock: socket.socket,
        on_end: OnEnd | None,
    ) -> None:
        self._backend = backend
        self.local_id = local_id
        self._sock = sock
        self._on_end = on_end

    def confirm(self, peer: PeerSide) -> EngineRelay:
        """The peer confirmed: pump. Transport's thread."""
        return self._backend.confirm(self.local_id, peer, self._sock, self._on_end)

    def cancel(self) -> None:
        """The peer refused, or is gone."""
        self._backend.engine.cancel(self.local_id)
        self._sock.close()


class EngineBackend:
    """Hands sockets to the engine of one transport, and hears how they end."""

    name: Literal["engine"] = "engine"

    def __init__(self, transport: Transport) -> None:
        engine = transport.packetizer.engine
        if engine is None:
            raise ConnectionLost("the engine does not run this connection")
        self.engine = engine
        # Held from before the engine takes a socket until its relay is known: its end
        # may be reported at once, on the transport's thread.
        self._lock = threading.Lock()
        self._relays: dict[int, EngineRelay] = {}
        self._lost = False
        # Who waits for the reply to a request, by local id. Protected by _lock.
        self._replies: dict[int, deque[Callable[[bool], None]]] = {}
        # Who decides about requests of the peer, by local id. Transport's thread.
        self._on_requests: dict[int, OnRequest] = {}
        self._transport = transport
        transport.packetizer.on_request = self._on_request
        transport.packetizer.on_ended = self._on_ended
        transport.packetizer.on_reply = self._on_reply

    @property
    def is_idle(self) -> bool:
        """Whether none of its channels is open."""
        return not self._relays

    def accept(
        self,
        peer: PeerSide,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        priority: Priority = "auto",
        on_request: OnRequest | None = None,
        limit: RateLimit | None = None,
    ) -> EngineRelay:
        """Confirm an open of the peer, then pump. Never blocks. Any thread.

        Raises ConnectionLost; `sock` is closed then.
        """
        sock.setblocking(False)
        with self._lock:
            try:
                local_id = self.engine.accept(
                    sock.fileno(),
                    peer.remote_id,
                    peer.window_bytes,
                    peer.max_packet_bytes,
                    receive_window_bytes(limit.bytes_per_s if limit else None),
                    MAX_PACKET_BYTES,
                    priority,
                    *((limit.key, limit.bytes_per_s) if limit else ()),
                )
            except EOFError:
                sock.close()
                raise ConnectionLost("the connection is closed") from None
            except BaseException:
                sock.close()
                raise
            if on_request is not None:
                self.engine.pass_requests(local_id)
                self._on_requests[local_id] = on_request
            return self._pumped(local_id, peer, sock, on_end)

    def reserve(
        self, sock: socket.socket, on_end: OnEnd | None = None
    ) -> EngineOpening:
        """Take a channel number for an open of ours. Owns `sock` from the call on."""
        try:
            local_id = self.engine.reserve(RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES)
        except EOFError:
            sock.close()
            raise ConnectionLost("the connection is closed") from None
        return EngineOpening(self, local_id, sock, on_end)

    def confirm(
        self, local_id: int, peer: PeerSide, sock: socket.socket, on_end: OnEnd | None
    ) -> EngineRelay:
        """The peer confirmed an open of ours: pump. Transport's thread."""
        sock.setblocking(False)
        with self._lock:
            try:
                self.engine.confirm(
                    local_id,
                    sock.fileno(),
                    peer.remote_id,
                    peer.window_bytes,
                    peer.max_packet_bytes,
                )
            except BaseException:
                sock.close()
                raise
            return self._pumped(local_id, peer, sock, on_end)

    def request(
        self, relay: EngineRelay, kind: str, payload: bytes, timeout_s: float
    ) -> bool:
        """Send a request on a pumped channel; return whether the peer granted it.

        Waits for the reply: not for the transport's thread. Raises RequestTimeout,
        ConnectionLost. (RFC 4254, section 5.4)
        """
        done = threading.Event()
        granted: list[bool] = []

        def on_reply(yes: bool) -> None:
            granted.append(yes)
            done.set()

        packet = (
            bytes([seams.MSG_CHANNEL_REQUEST])
            + u32(relay.remote_id)
            + string(kind)
            + boolean(True)
            + payload
        )
        with self._lock:  # the order of the replies is that of the requests
            if relay.ended or self._lost:
                raise ConnectionLost("the channel is closed")
            self._replies.setdefault(relay.local_id, deque()).append(on_reply)
            seams.send(self._transport, packet)
        if not done.wait(timeout_s):
            raise RequestTimeout(f"the server did not answer the request {kind!r}")
        return granted[0]

    def _on_request(self, local_id: int, body: bytes) -> None:
        """Have a request of the peer decided, and answer it.

        Payload, after the type and our channel number::
            string  type of the request
            boolean want reply
            ....    data of this type
        """
        fields = Reader(body)
        kind, wants_reply = fields.text(), fields.boolean()
        on_request, relay = self._on_requests.get(local_id), self._relays.get(local_id)
        granted = on_request is not None and on_request(kind, fields)
        if wants_reply and relay is not None:
            reply = seams.MSG_CHANNEL_SUCCESS if granted else seams.MSG_CHANNEL_FAILURE
            seams.send(self._transport, bytes([reply]) + u32(relay.remote_id))

    def _on_reply(self, local_id: int, granted: bool) -> None:
        with self._lock:
            waiting = self._replies.get(local_id)
            on_reply = waiting.popleft() if waiting else None
        if on_reply is not None:
            on_reply(granted)

    def _pumped(
        self, local_id: int, peer: PeerSide, sock: socket.socket, on_end: OnEnd | None
    ) -> EngineRelay:
        sock.detach()  # the engine owns the descriptor now
        relay = EngineRelay(self.engine, local_id, peer.remote_id, on_end)
        self._relays[local_id] = relay
        return relay

    def round_trips_s(self) -> tuple[float, float]:
        """Return the last round trip and the best one, measured by probes."""
        last_us, best_us = self.engine.path()
        return last_us / 1e6, best_us / 1e6

    def close(self) -> None:
        """The connection ended: finish or reset every local socket. Any thread."""
        with self._lock:
            self._lost = True
        self._transport.packetizer.say_last_words()  # the engine sends nothing below
        self.engine.end_channels()
        self._on_ended(self.engine.take_ended())

    def _on_ended(self, ended: EndedChannels) -> None:
        for local_id, bytes_in, bytes_out, error, was_reset in ended:
            with self._lock:
                relay = self._relays.pop(local_id, None)
                waiting = self._replies.pop(local_id, ())
                self._on_requests.pop(local_id, None)
                lost = self._lost
            for on_reply in waiting:
                on_reply(False)
            if relay is None:
                continue
            reason: Literal["closed", "reset", "lost"] = "closed"
            if was_reset:
                reason = "lost" if lost else "reset"
            relay.finish(
                RelayEnd(
                    bytes_in,
                    bytes_out,
                    reason,
                    os.strerror(error) if error else None,
                )
            )
