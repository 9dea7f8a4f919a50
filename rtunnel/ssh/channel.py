"""The portable backend: channels in Python, bytes through a reactor's ports.

Works on any paramiko transport. It is what runs when the engine cannot, and what the
engine is compared with.

Theory of operation. The transport's thread hands every message of our channels to
`PortableChannel.handle`. Data goes into a *port* of the reactor, which writes it to
the local socket, and what the port read from the socket comes back as a callback and
leaves through the outbox. Three rates have to agree, and each has its limit:

* peer -> socket: the receive window; credit follows `on_consumed`.
* socket -> peer: the port reads only what it was granted, and only as much of the
  send window is granted as may wait in the outbox (`SEND_AHEAD_PACKETS`). So channels
  take turns in the outbox, packet by packet, and a full window of one of them does
  not stand before a keystroke of another.
* end: see halfclose.py.

Which thread: `handle` runs on the transport's, the port's callbacks on the
reactor's, `_sent` on the outbox's, `reset` on any. One lock per channel serialises
them. Messages are queued while it is held, so their order is that of the events.
Lock order: channel, then outbox or port; never two channels.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from functools import partial
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

from paramiko.message import Message

from rtunnel.errors import ProtocolError
from rtunnel.halfclose import Action, Half, HalfClose
from rtunnel.ssh import seams
from rtunnel.ssh.outbox import Outbox
from rtunnel.ssh.relay import (
    BackendName,
    OnEnd,
    OnRequest,
    PeerSide,
    Priority,
    RateLimit,
    RelayEnd,
)
from rtunnel.window import (
    MAX_PACKET_BYTES,
    ReceiveWindow,
    SendWindow,
    receive_window_bytes,
)
from rtunnel.wire import Reader, string, u32

log = logging.getLogger("rtunnel.ssh.channel")

# What one channel may have read and not yet handed to the kernel: enough for reading,
# sealing and sending to overlap.
SEND_AHEAD_PACKETS: Final = 4
# When the connection is lost, streams that the peer had completed are delivered, but
# a target that does not read must not keep the reactor for ever.
DRAIN_AFTER_LOSS_S: Final = 10.0


class PortableChannel:
    """One channel and its port. Implements `Relay`, and `PortEvents` of the pump."""

    def __init__(
        self,
        backend: PortableBackend,
        on_end: OnEnd | None,
        on_request: OnRequest | None = None,
        limit: RateLimit | None = None,
    ) -> None:
        # Read-only after the channel was started.
        self._backend = backend
        self._outbox = backend.outbox
        self.local_id = seams.register_channel(backend.transport, self)
        self.remote_id = -1
        self._on_request = on_request
        self._limit = limit
        self._port: Any = None
        # Protected by _lock. Re-entrant: a port may report from inside a call to it.
        self._lock = threading.RLock()
        self._on_end = on_end
        self._halves = HalfClose()
        self._receive_window = ReceiveWindow(
            receive_window_bytes(limit.bytes_per_s if limit else None)
        )
        self._send_window: SendWindow | None = None
        self._ahead_bytes = 0  # granted to the port, or in the outbox
        self._socket_ended = False
        self._socket_error: OSError | None = None
        self._was_reset = False
        self._was_lost = False
        # Written under _lock, read without.
        self.bytes_out = 0
        self.ended = False

    def __repr__(self) -> str:
        return f"<channel {self.local_id}/{self.remote_id}>"

    @property
    def stalled(self) -> bool:
        """Whether it may send nothing now: the peer's window is used up."""
        window = self._send_window
        if window is None or self.ended:
            return False
        return window.left_bytes == 0 and self._ahead_bytes == 0

    @property
    def bytes_in(self) -> int:
        """Payload bytes from the peer that the local socket took."""
        return 0 if self._port is None else int(self._port.bytes_out)

    def start(self, peer: PeerSide, sock: socket.socket, confirm: bool) -> None:
        """Pump between `sock` and the peer; first confirm the peer's open, if asked."""
        with self._lock:
            self.remote_id = peer.remote_id
            self._send_window = SendWindow(peer.window_bytes, peer.max_packet_bytes)
            if confirm:
                self._send(
                    seams.MSG_CHANNEL_OPEN_CONFIRMATION,
                    u32(self.local_id)
                    + u32(self._receive_window.size_bytes)
                    + u32(MAX_PACKET_BYTES),
                )
            self._port = self._backend.add_port(sock, self, self._limit)
            self._grant()
        log.debug("relay started: chan=%d peer=%d", self.local_id, self.remote_id)

    def refuse(self, sock: socket.socket) -> None:
        """End before the start: the connection was over already."""
        sock.close()
        self._was_lost = True
        self.on_end(None)
        self._backend.free(self)

    def reset(self) -> None:
        """End the relay now. Never blocks; any thread."""
        with self._lock:
            if self.ended:
                return
            self._was_reset = True
            self._act(self._halves.reset())
        self._finish()

    def lose(self) -> None:
        """The connection is gone. Only for the backend."""
        with self._lock:
            # Complete already, and only the local socket has still to take its rest?
            self._was_lost = self._halves.received is not Half.CLOSED
            self._act(self._halves.lost())
        self._finish()

    def _unlink(self) -> None:
        """paramiko's notice that the connection ended; `lose` is ours."""

    # Messages of the peer, on the transport's thread.

    def handle(self, kind: int, message: Message) -> None:
        """Take a message for this channel; its number has been read already."""
        try:
            with self._lock:
                if self._send_window is None:
                    raise ProtocolError("the peer used a channel it had not confirmed")
                if self._port is not None:
                    self._handle(kind, Reader(seams.payload(message)))
        except ProtocolError as error:
            self._outbox.fail(error)
        if kind == seams.MSG_CHANNEL_CLOSE:
            self._finish()

    def _handle(self, kind: int, fields: Reader) -> None:
        """Payloads, after the type and our channel number::

        DATA           string data
        EXTENDED_DATA  uint32 type, string data
        WINDOW_ADJUST  uint32 bytes to add
        EOF, CLOSE     nothing
        REQUEST        string type, boolean want reply, data of this type
        """
        if kind == seams.MSG_CHANNEL_DATA:
            self._on_data(fields.string())
        elif kind == seams.MSG_CHANNEL_WINDOW_ADJUST:
            assert self._send_window is not None
            self._send_window.adjust(fields.u32())
            self._grant()
        elif kind == seams.MSG_CHANNEL_EXTENDED_DATA:
            # No forward has a use for it, but it uses up the window all the same.
            fields.u32()
            count = len(fields.string())
            self._charge(count)
            self._consume(count)
        elif kind == seams.MSG_CHANNEL_EOF:
            self._act(self._halves.peer_eof())
        elif kind == seams.MSG_CHANNEL_CLOSE:
            self._act(self._halves.peer_close())
        elif kind == seams.MSG_CHANNEL_REQUEST:
            request, wants_reply = fields.text(), fields.boolean()
            decide = self._on_request
            granted = decide is not None and decide(request, fields)
            if wants_reply:
                self._send(
                    seams.MSG_CHANNEL_SUCCESS if granted else seams.MSG_CHANNEL_FAILURE
                )

    def _on_data(self, data: bytes) -> None:
        if self._halves.received is not Half.OPEN:
            log.debug("data behind EOF dropped: chan=%d", self.local_id)
            return
        self._charge(len(data))
        if self._socket_ended or self._was_reset:
            # Nobody will take it. Credit it, or a peer that has to get rid of its
            # data before it reads our CLOSE would wait for ever.
            self._consume(len(data))
            return
        self._port.feed(data)

    def _charge(self, count: int) -> None:
        if count > MAX_PACKET_BYTES:
            raise ProtocolError("the peer sent more than the maximum packet")
        self._receive_window.charge(count)

    # Callbacks of the port, on the reactor's thread.

    def on_readable(self, data: bytes) -> None:
        with self._lock:
            if self._halves.sent is not Half.OPEN:
                return
            assert self._send_window is not None
            self.bytes_out += len(data)
            for piece in self._send_window.packets(data):
                self._send(
                    seams.MSG_CHANNEL_DATA,
                    string(piece),
                    partial(self._sent, len(piece)),
                )

    def on_eof(self) -> None:
        with self._lock:
            self._act(self._halves.local_eof())

    def on_consumed(self, count: int) -> None:
        with self._lock:
            self._consume(count)

    def on_end(self, error: OSError | None) -> None:
        with self._lock:
            self._socket_ended = True
            self._socket_error = error
            self._act(self._halves.local_end())
        self._backend.forget_port(self)
        self._finish()

    def _finish(self) -> None:
        """Report the end of the relay, if this is it.

        A relay that ends in an orderly way lasts until the peer's CLOSE: before it,
        the last bytes may still be on their way. One that was broken off does not
        wait for a peer, which may take its time.
        """
        with self._lock:
            broken = self._was_reset or self._was_lost or self._socket_error is not None
            closed = broken or self._halves.received is Half.CLOSED
            if self.ended or not self._socket_ended or not closed:
                return
            self.ended = True
            end = self._end()
            on_end, self._on_end = self._on_end, None
        log.debug(
            "relay ended: chan=%d reason=%s bytes_in=%d bytes_out=%d error=%s",
            self.local_id,
            end.reason,
            end.bytes_in,
            end.bytes_out,
            end.error,
        )
        if on_end is not None:
            on_end(end)

    def _end(self) -> RelayEnd:
        if self._was_reset:
            return RelayEnd(self.bytes_in, self.bytes_out, "reset")
        if self._was_lost:
            return RelayEnd(self.bytes_in, self.bytes_out, "lost", "connection lost")
        if self._socket_error is not None:
            text = self._socket_error.strerror
            return RelayEnd(self.bytes_in, self.bytes_out, "reset", text)
        return RelayEnd(self.bytes_in, self.bytes_out, "closed")

    # Under _lock.

    def _sent(self, count: int) -> None:
        with self._lock:
            self._ahead_bytes -= count
            self._grant()

    def _grant(self) -> None:
        """Let the port read what the send window and the outbox have room for."""
        if self._port is None or self._halves.sent is not Half.OPEN:
            return
        assert self._send_window is not None
        ahead = SEND_AHEAD_PACKETS * self._send_window.max_packet_bytes
        count = self._send_window.reserve(ahead - self._ahead_bytes)
        if count:
            self._ahead_bytes += count
            self._port.grant(count)

    def _consume(self, count: int) -> None:
        credit = self._receive_window.consume(count)
        if credit and self._halves.received is Half.OPEN:
            self._send(seams.MSG_CHANNEL_WINDOW_ADJUST, u32(credit))

    def _act(self, actions: Action) -> None:
        if Action.SEND_EOF in actions:
            self._send_packet(seams.MSG_CHANNEL_EOF)
        if Action.SEND_CLOSE in actions:
            self._send_packet(seams.MSG_CHANNEL_CLOSE)
        if self._port is not None and not self._socket_ended:
            if Action.SHUTDOWN_SOCKET in actions:
                self._port.feed_eof()
            if Action.CLOSE_SOCKET in actions:
                self._port.close()
            if Action.RESET_SOCKET in actions:
                self._port.reset()
        if Action.FREE in actions:
            self._backend.free(self)

    def _send(self, kind: int, fields: bytes = b"", on_sent: Any = None) -> None:
        """Queue a message, unless our CLOSE is on its way: nothing may follow that."""
        if self._halves.sent is not Half.CLOSED:
            self._send_packet(kind, fields, on_sent)

    def _send_packet(self, kind: int, fields: bytes = b"", on_sent: Any = None) -> None:
        self._outbox.send(bytes([kind]) + u32(self.remote_id) + fields, on_sent)


class PortableOpening:
    """A channel of ours that the peer has not confirmed yet."""

    def __init__(
        self, backend: PortableBackend, sock: socket.socket, on_end: OnEnd | None
    ) -> None:
        self._backend = backend
        self._sock = sock
        self._channel = PortableChannel(backend, on_end)
        self.local_id = self._channel.local_id

    def confirm(self, peer: PeerSide) -> PortableChannel:
        """Start to pump. Only on the transport's thread."""
        if self._backend.add(self._channel):
            self._channel.start(peer, self._sock, confirm=False)
        else:
            self._channel.refuse(self._sock)
        return self._channel

    def cancel(self) -> None:
        """Free the number and close the socket."""
        self._backend.free(self._channel)
        self._sock.close()


class PortableBackend:
    """Channels of one transport over the reactor of `reactor_module`."""

    def __init__(
        self, transport: seams.AnyTransport, reactor_module: ModuleType
    ) -> None:
        self.transport = transport
        self.outbox = Outbox.of(transport)
        self.outbox.queue_all()
        self.name: BackendName = (
            "python" if reactor_module.__name__.endswith("_py") else "pump"
        )
        # Now: when the first visitor comes, there may be no descriptors left for it.
        self._reactor: Any = reactor_module.Reactor()
        # Protected by _lock.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._timer: threading.Timer | None = None
        self._closed = False
        # By number, until both CLOSEs were exchanged. A strong reference: the map of
        # paramiko is weak.
        self._channels: dict[int, PortableChannel] = {}
        # The reactor's side of each rate, while a listener has it.
        self._rates: WeakKeyDictionary[RateLimit, Any] = WeakKeyDictionary()
        # With a local socket that has not ended; outlasts the number.
        self._live: set[PortableChannel] = set()
        seams.route_channel_messages(transport, PortableChannel)

    @property
    def is_idle(self) -> bool:
        """Whether none of its channels is open."""
        return not self._channels

    def accept(
        self,
        peer: PeerSide,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        priority: Priority = "auto",
        on_request: OnRequest | None = None,
        limit: RateLimit | None = None,
    ) -> PortableChannel:
        """Confirm an open of the peer, then pump. Any thread; never blocks."""
        channel = PortableChannel(self, on_end, on_request, limit)
        if self.add(channel):
            channel.start(peer, sock, confirm=True)
        else:
            channel.refuse(sock)
        return channel

    def reserve(
        self, sock: socket.socket, on_end: OnEnd | None = None
    ) -> PortableOpening:
        """Take a channel number for an open of ours."""
        return PortableOpening(self, sock, on_end)

    def round_trips_s(self) -> tuple[float, float]:
        """Nothing is measured here."""
        return 0.0, 0.0

    def close(self) -> None:
        """The connection ended: end every relay as lost. Any thread; once."""
        with self._lock:
            self._closed = True
            channels = self._live.union(self._channels.values())
        for channel in channels:
            channel.lose()
        with self._lock:
            self._channels.clear()
            if self._live and self._timer is None:
                self._timer = threading.Timer(DRAIN_AFTER_LOSS_S, self._stop)
                self._timer.name = "rtunnel-drain"
                self._timer.daemon = True
                self._timer.start()
            idle = not self._live
        if idle:
            self._stop()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end, `timeout_s` in all; not for the caller's own.

        The timer, too: a cancelled one lives until it has seen that.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = [self._thread, self._timer]
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    # For the channels.

    def add(self, channel: PortableChannel) -> bool:
        """Take a channel into account; False when the connection is over."""
        with self._lock:
            if self._closed:
                return False
            self._channels[channel.local_id] = channel
            self._live.add(channel)
            return True

    def add_port(
        self, sock: socket.socket, channel: PortableChannel, limit: RateLimit | None
    ) -> Any:
        """Give the socket to the reactor, which runs from the first one on."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._reactor.run, name="rtunnel-reactor", daemon=True
                )
                self._thread.start()
            rate = None if limit is None else self._rates.get(limit)
            if limit is not None and rate is None:
                rate = self._rates[limit] = self._reactor.add_rate(limit.bytes_per_s)
        port = self._reactor.add_port(sock, channel, rate)
        if self._closed:
            # The connection ended since `add`. The reactor still runs: it waits for
            # this channel, too.
            port.reset()
        return port

    def free(self, channel: PortableChannel) -> None:
        """Give the number back: the peer cannot name it any more."""
        with self._lock:
            self._channels.pop(channel.local_id, None)
        seams.unregister_channel(self.transport, channel.local_id)

    def forget_port(self, channel: PortableChannel) -> None:
        """Note that its socket has ended; the last one ends a closed backend."""
        with self._lock:
            self._live.discard(channel)
            idle = self._closed and not self._live
        if idle:
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            reactor, timer = self._reactor, self._timer
        if timer is not None:
            timer.cancel()
        reactor.close()
