"""The connection protocol (RFC 4254) of one transport, for many forwards.

paramiko has one slot for the handler of forwarded ports, one for the reply of a
global request, and confirms a channel before it asks anybody. `Connection` puts its
own handlers in the place of these, on the one transport it is made for: it pairs
global requests with replies, keeps the table of forwards, offers each open of the
peer to whoever requested the forward, and hands the channels to a backend. All other
channels and requests go on to paramiko.

Which thread: the `_on_...` methods of the peer's messages run on the transport's
thread and never block. Everything public may be called from any thread; what waits
for the peer says so.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import paramiko
from paramiko.message import Message

from rtunnel.errors import (
    BackendUnavailable,
    ConnectionLost,
    OpenFailureCode,
    ProtocolError,
    RequestRefused,
    RequestTimeout,
)
from rtunnel.forwards import (
    DIRECT_STREAMLOCAL,
    DIRECT_TCPIP,
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
    Forward,
    ForwardTable,
    Verdict,
)
from rtunnel.ssh import seams
from rtunnel.ssh.arrivals import Arrival, ChannelOpen, OnOpen
from rtunnel.ssh.backends import choose_backend
from rtunnel.ssh.ending import Ending
from rtunnel.ssh.guards import guard
from rtunnel.ssh.openings import OnOpened, Openings, read_peer_side
from rtunnel.ssh.outbox import Outbox
from rtunnel.ssh.packetizer import KEX_TIMEOUT_S
from rtunnel.ssh.refusal import explain
from rtunnel.ssh.relay import Backend, OnEnd, PeerSide, Relay
from rtunnel.ssh.requests import Answer, Granted, Refused, RequestQueue
from rtunnel.ssh.sockets import set_nodelay
from rtunnel.ssh.stock_api import StockApi
from rtunnel.ssh.vitals import RttMeter, Vitals, cipher_of, rekeys_of
from rtunnel.wire import Reader, string, u32

log = logging.getLogger("rtunnel.ssh.connection")

REQUEST_TIMEOUT_S: Final = 30.0
# Opens that wait for the reply to a request for port 0; as many as sshd itself lets
# wait for an accept (its listen backlog, SSH_LISTEN_BACKLOG).
PARKED_OPENS: Final = 128
# Opens that nobody has decided: each has a target that is being dialled. As many as
# requests of a client may wait in the gateway.
UNDECIDED_OPENS_MAX: Final = 4096
# DEBUG messages kept to explain a refusal.
PEER_SAID_MESSAGES: Final = 8

_ATTRIBUTE: Final = "_rtunnel_connection"
_making: Final = threading.Lock()


class Connection:
    """The forwards, requests and channels of one transport. See `Connection.of`."""

    def __init__(self, transport: seams.AnyTransport, backend: str | None) -> None:
        seams.require()
        # Read-only after construction.
        self.transport = transport
        self.backend: Backend
        self.backend, self.backend_reason = choose_backend(transport, backend)
        self._outbox = Outbox.of(transport)
        self._requests = RequestQueue(self._outbox.send)
        self._openings = Openings(self._outbox.send)
        self._ending = Ending(transport)
        self._stock_api = StockApi(self)
        self._rtt_meter = RttMeter(self.ping, self.backend.round_trips_s)
        # Protected by _lock, which is never held while anything is called that may
        # block or call back.
        self._lock = threading.Lock()
        self._table = ForwardTable()
        self._on_open: dict[Forward, OnOpen] = {}
        self._parked: list[Arrival] = []
        self._undecided = 0
        # Only on the transport's thread.
        self._peer_said: deque[str] = deque(maxlen=PEER_SAID_MESSAGES)
        self._install()
        log.info(
            "backend chosen: conn=%x backend=%s reason=%s",
            id(transport),
            self.backend.name,
            self.backend_reason,
        )

    @staticmethod
    def of(transport: seams.AnyTransport, backend: str | None = None) -> Connection:
        """Return the transport's connection; the first call makes it.

        `backend` names one as RTUNNEL_BACKEND does, and wins over it. Make it before
        other threads wait for replies to `transport.global_request`: those that were
        sent earlier are not known here.

        Raises `BackendUnavailable` if the named backend cannot run on this transport
        or another one runs already, `ConnectionLost` if the transport is not active.
        """
        with _making:
            connection: Connection | None = transport.__dict__.get(_ATTRIBUTE)
            if connection is None:
                if not transport.is_active():
                    raise ConnectionLost(
                        "the transport is not connected: connect and authenticate it "
                        "first"
                    )
                connection = Connection(transport, backend)
                setattr(transport, _ATTRIBUTE, connection)
        if backend not in (None, "auto", connection.backend.name):
            raise BackendUnavailable(
                f"the backend {backend!r} was asked for, but this connection runs on "
                f"{connection.backend.name!r} already: name it in the first call"
            )
        return connection

    def _install(self) -> None:
        transport = self.transport
        guard(transport, self._outbox.fail)
        handlers = seams.handler_table(transport)
        self._originals = dict(handlers)
        handlers[seams.MSG_REQUEST_SUCCESS] = self._on_request_success
        handlers[seams.MSG_REQUEST_FAILURE] = self._on_request_failure
        handlers[seams.MSG_CHANNEL_OPEN] = self._on_channel_open
        handlers[seams.MSG_CHANNEL_OPEN_CONFIRMATION] = self._on_open_confirmation
        handlers[seams.MSG_CHANNEL_OPEN_FAILURE] = self._on_open_failure
        seams.shadow(transport, "_parse_debug", self._on_debug)
        seams.shadow(transport, "_parse_disconnect", self._ending.on_disconnect)
        self._stock_api.install()
        set_nodelay(transport.sock)
        # A link with much in its queues takes longer than paramiko's 30 s.
        transport.clear_to_send_timeout = max(
            transport.clear_to_send_timeout, KEX_TIMEOUT_S
        )
        self._watch = seams.watch_end(transport, self._on_transport_end)
        if not transport.is_active():
            self._on_transport_end()

    # Global requests.

    def request(
        self,
        kind: str,
        payload: bytes = b"",
        *,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> bytes:
        """Send a global request and wait for its reply; return the reply's payload.

        Any number of threads may do so at once. Raises `RequestRefused`,
        `RequestTimeout`, `ConnectionLost`. (RFC 4254, section 4)
        """
        answer = self._ask(kind, payload, timeout_s)
        if isinstance(answer, Refused):
            raise RequestRefused(f"the server refused the request {kind!r}")
        return answer.payload

    def notify(self, kind: str, payload: bytes = b"") -> None:
        """Send a global request that wants no reply. Never blocks."""
        self._requests.notify(kind, payload)

    def ping(
        self,
        on_answer: Callable[[], None],
        kind: str = "keepalive@openssh.com",
    ) -> None:
        """Ask for a sign of life. Never blocks.

        `on_answer` is called on the transport's thread for SUCCESS and for FAILURE:
        both prove that the peer is there. It is not called when the connection ends.
        """

        def answered(answer: Answer) -> None:
            if not isinstance(answer, ConnectionLost):
                on_answer()

        self._requests.submit(kind, b"", answered)

    def vitals(self) -> Vitals:
        """Say how the connection does; asks for a round trip if the last one is old.

        Never blocks. Any thread.
        """
        rtt_s, best_s = self._rtt_meter.read_s() if self.end is None else (None, None)
        return Vitals(
            cipher=cipher_of(self.transport),
            rtt_s=rtt_s,
            rtt_best_s=best_s,
            rekeys=rekeys_of(self.transport),
        )

    def _ask(
        self,
        kind: str,
        payload: bytes,
        timeout_s: float | None,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> Granted | Refused:
        """Send and wait; `on_answer` comes first, on the transport's thread."""
        done = threading.Event()
        answers: list[Answer] = []

        def answered(answer: Answer) -> None:
            try:
                if on_answer is not None:
                    on_answer(answer)
            except ProtocolError as error:
                answers.append(error)
                raise
            finally:
                answers.append(answer)
                done.set()

        self._requests.submit(kind, payload, answered)
        if not done.wait(timeout_s):
            raise RequestTimeout(
                f"the server did not answer the request {kind!r} within {timeout_s} s"
            )
        if isinstance(answers[0], ConnectionLost):
            raise answers[0]
        return answers[0]

    def _on_request_success(self, message: Message) -> None:
        self._peer_said.clear()
        self._guard(lambda: self._requests.answer(Granted(seams.payload(message))))

    def _on_request_failure(self, message: Message) -> None:
        refused = Refused(tuple(self._peer_said))
        self._peer_said.clear()
        self._requests.answer(refused)

    def _on_debug(self, message: Message) -> None:
        """Keep what the server says about its reasons.

        Payload::
            boolean always display
            string  message
            string  language
        """
        with contextlib.suppress(ProtocolError):
            fields = Reader(seams.payload(message))
            fields.boolean()
            text = fields.text()
            self._peer_said.append(text)
            log.debug("server says: conn=%x text=%r", id(self.transport), text)

    # Forwards.

    def listen(
        self,
        forward: Forward,
        on_open: OnOpen,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
        *,
        diagnose: bool = True,
    ) -> int:
        """Ask the server to listen; return the port (0 for a socket path).

        `on_open` gets each open that belongs to the forward, on the transport's
        thread: it must not block. It may be called before this returns. With
        `diagnose`, a refusal is looked into by up to two more requests.

        Waits for the server. Raises `PortInUse`, `ForwardingDenied`,
        `RequestTimeout`, `ConnectionLost`. (RFC 4254, section 7.1)
        """
        with self._lock:
            self._table.add(forward)
            self._on_open[forward] = on_open
        abandoned = threading.Event()
        kind, payload = forward.request()

        def answered(answer: Answer) -> None:
            # Here and not in the waiting thread: the next packet may be an open.
            if isinstance(answer, Granted):
                forward.resolve(answer.payload)
                if abandoned.is_set():
                    # Nobody waits for it any more.
                    self._cancel_later(forward)
            else:
                self._forget(forward)
            self._match_parked()

        try:
            answer = self._ask(kind, payload, timeout_s, answered)
        except RequestTimeout:
            abandoned.set()
            raise
        if isinstance(answer, Refused):
            raise explain(self, forward, answer.peer_said, diagnose)
        log.debug("listening: conn=%x bind=%s", id(self.transport), forward)
        return forward.port

    def cancel(
        self, forward: Forward, timeout_s: float | None = REQUEST_TIMEOUT_S
    ) -> None:
        """Ask the server to listen no more; opens are taken until it has answered.

        Waits for the server. Does nothing if the forward is not in force. Raises
        `RequestRefused` (some servers cannot cancel), `RequestTimeout`,
        `ConnectionLost`; the forward is gone from the table after the answer.
        """
        with self._lock:
            if forward not in self._table:
                return
            self._table.mark_cancelling(forward)
        kind, payload = forward.cancel_request()
        answer = self._ask(kind, payload, timeout_s, lambda _: self._forget(forward))
        if isinstance(answer, Refused):
            raise RequestRefused(f"the server refused to cancel the forward {forward}")
        log.debug("cancelled: conn=%x bind=%s", id(self.transport), forward)

    def cancel_all(self, forwards: list[Forward], timeout_s: float) -> None:
        """Cancel many forwards in one round trip; say nothing of those that fail."""
        answered = threading.Semaphore(0)
        for forward in forwards:
            self._cancel_later(forward, answered.release)
        deadline = time.monotonic() + timeout_s
        for _ in forwards:
            answered.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def divert(self, forward: Forward, on_open: OnOpen) -> None:
        """Give the opens of a forward to `on_open` from now on, instead.

        Does nothing if the forward is not in force. Any thread.
        """
        with self._lock:
            if forward in self._on_open:
                self._on_open[forward] = on_open

    def _cancel_later(
        self, forward: Forward, on_answer: Callable[[], object] = lambda: None
    ) -> None:
        """Send a cancel that nobody waits for."""

        def answered(answer: Answer) -> None:
            self._forget(forward)
            on_answer()

        with self._lock:
            self._table.mark_cancelling(forward)
        kind, payload = forward.cancel_request()
        self._requests.submit(kind, payload, answered)

    def _forget(self, forward: Forward) -> None:
        with self._lock:
            self._table.remove(forward)
            self._on_open.pop(forward, None)

    # Opens of the peer.

    def _on_channel_open(self, message: Message) -> None:
        """Offer an open to its forward; all other opens are paramiko's.

        Payload::
            string  channel type
            uint32  sender channel, initial window, max packet
            forwarded-tcpip:
                string  address, uint32 port the visitor came to
                string  address, uint32 port the visitor comes from
            forwarded-streamlocal@openssh.com:
                string  socket path the visitor came to
                string  reserved
        """
        fields = Reader(seams.payload(message))

        def offer() -> None:
            kind = fields.text()
            if self.transport.server_mode or kind not in (
                FORWARDED_TCPIP,
                FORWARDED_STREAMLOCAL,
            ):
                self._originals[seams.MSG_CHANNEL_OPEN](seams.rewind(message))
                return
            peer = read_peer_side(fields)
            address = fields.text()
            port = fields.u32() if kind == FORWARDED_TCPIP else 0
            origin = ("", 0)
            if kind == FORWARDED_TCPIP:
                origin = (fields.text(), fields.u32())
            self._offer(Arrival(message, kind, peer, address, port, origin))

        self._guard(offer)

    def _offer(self, arrival: Arrival) -> None:
        on_open: OnOpen | None = None
        with self._lock:
            found = self._table.match(arrival.kind, arrival.address, arrival.port)
            if found is Verdict.PARK and len(self._parked) < PARKED_OPENS:
                self._parked.append(arrival)
                return
            if isinstance(found, Forward):
                if self._undecided < UNDECIDED_OPENS_MAX:
                    self._undecided += 1
                    on_open = self._on_open[found]
                else:
                    found = Verdict.PARK
        if on_open is not None and isinstance(found, Forward):
            on_open(
                ChannelOpen(self, arrival.kind, found, arrival.origin, arrival.peer)
            )
        elif found is Verdict.PARK:
            self.send_open_failure(
                arrival.peer, OpenFailureCode.RESOURCE_SHORTAGE, "too many opens wait"
            )
        elif (
            arrival.kind == FORWARDED_TCPIP
            and seams.tcp_handler(self.transport) is not None
        ):
            # Somebody called paramiko's request_port_forward before this connection
            # was made; what they asked for is not in the table.
            original = self._originals[seams.MSG_CHANNEL_OPEN]
            original(seams.rewind(arrival.message))
        else:
            self._reject_unrequested(arrival)

    def note_decided(self) -> None:
        """Note that an open was accepted or rejected. Only for `ChannelOpen`."""
        with self._lock:
            self._undecided -= 1

    def _reject_unrequested(self, arrival: Arrival) -> None:
        log.warning(
            "rejected an open for a forward that was not requested: "
            "conn=%x address=%r port=%d",
            id(self.transport),
            arrival.address,
            arrival.port,
        )
        self.send_open_failure(
            arrival.peer,
            OpenFailureCode.ADMINISTRATIVELY_PROHIBITED,
            "no such forward was requested",
        )

    def _match_parked(self) -> None:
        """Offer again what waited for a reply to name its port."""
        with self._lock:
            parked, self._parked = self._parked, []
        for arrival in parked:
            self._offer(arrival)

    # For ChannelOpen.

    def send_open_failure(
        self, peer: PeerSide, code: OpenFailureCode, reason: str
    ) -> None:
        """Answer an open with CHANNEL_OPEN_FAILURE. Never blocks."""
        self._outbox.send(
            bytes([seams.MSG_CHANNEL_OPEN_FAILURE])
            + u32(peer.remote_id)
            + u32(code)
            + string(reason)
            + string("en")
        )

    def confirm_stock_channel(
        self, peer: PeerSide, then: Callable[[paramiko.Channel], object]
    ) -> None:
        """Answer an open with a channel of paramiko's. Never blocks."""
        channel = seams.make_channel(
            self.transport, peer.remote_id, peer.window_bytes, peer.max_packet_bytes
        )
        self._outbox.send(
            bytes([seams.MSG_CHANNEL_OPEN_CONFIRMATION])
            + u32(peer.remote_id)
            + u32(channel.chanid)
            + u32(self.transport.default_window_size)
            + u32(self.transport.default_max_packet_size),
            lambda: then(channel),
        )

    # Opens of ours.

    def open(
        self,
        kind: str,
        payload: bytes,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> Relay:
        """Open a channel of any type and pump between it and `sock`, owned from here.

        Waits for the peer. Raises `ChannelOpenError` with the peer's code and text,
        `RequestTimeout`, `ConnectionLost`; the socket is closed then. (RFC 4254,
        section 5.1)
        """
        opening = self.backend.reserve(sock, on_end)
        return self._openings.open(opening, kind, payload, timeout_s)

    def open_later(
        self,
        kind: str,
        payload: bytes,
        sock: socket.socket,
        on_opened: OnOpened,
        on_end: OnEnd | None = None,
    ) -> None:
        """Open a channel as `open` does, but wait for nothing. Never blocks.

        `on_opened` gets the relay, or the error that `open` would raise, once: on the
        transport's thread, or here when the connection is over. It must be quick. A
        peer that does not answer is waited for until the connection ends.
        """
        try:
            opening = self.backend.reserve(sock, on_end)
        except ConnectionLost as lost:
            on_opened(lost)
        else:
            self._openings.open_later(opening, kind, payload, on_opened)

    def open_tcp(
        self,
        host: str,
        port: int,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> Relay:
        """Open `direct-tcpip` to a host and port that the server dials."""
        payload = string(host) + u32(port) + string("127.0.0.1") + u32(0)
        return self.open(DIRECT_TCPIP, payload, sock, on_end, timeout_s)

    def open_unix(
        self,
        path: str,
        sock: socket.socket,
        on_end: OnEnd | None = None,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> Relay:
        """Open `direct-streamlocal@openssh.com` to a socket path on the server."""
        payload = string(path) + string("") + u32(0)
        return self.open(DIRECT_STREAMLOCAL, payload, sock, on_end, timeout_s)

    def _on_open_confirmation(self, message: Message) -> None:
        def confirm() -> None:
            if not self._openings.confirmed(seams.payload(message)):
                original = self._originals[seams.MSG_CHANNEL_OPEN_CONFIRMATION]
                original(seams.rewind(message))

        self._guard(confirm)

    def _on_open_failure(self, message: Message) -> None:
        def refuse() -> None:
            if not self._openings.refused(seams.payload(message)):
                original = self._originals[seams.MSG_CHANNEL_OPEN_FAILURE]
                original(seams.rewind(message))

        self._guard(refuse)

    # The end.

    @property
    def end(self) -> ConnectionLost | None:
        """Why the connection is over; None while it stands."""
        return self._ending.lost

    @property
    def closed_here(self) -> bool:
        """Whether the connection is over because this side closed it."""
        return self._ending.closed_here

    def add_end_callback(self, callback: Callable[[ConnectionLost], None]) -> None:
        """Have `callback` called once when the connection is over: at once if it is.

        On the transport's thread, or on that which closed it: it must be quick.
        """
        self._ending.add_callback(callback)

    def join(self, timeout_s: float) -> None:
        """Wait for the threads of a connection that is over, unless on one of them."""
        for waitable in (self._outbox, self.backend):
            join = getattr(waitable, "join", None)
            if join is not None:
                join(timeout_s)
        if self.transport is not threading.current_thread():
            self.transport.join(timeout_s)

    def _on_transport_end(self) -> None:
        lost = self._ending.begin(self._outbox.failure, self._is_unused())
        if lost is None:
            return
        with self._lock:
            self._parked.clear()
        log.info("connection over: conn=%x reason=%s", id(self.transport), lost)
        self._outbox.stop()
        self.backend.close()
        self._requests.fail(lost)
        self._openings.fail(lost)
        self._ending.tell()

    def _is_unused(self) -> bool:
        """Whether ports are listening for us, and no channel is open."""
        with self._lock:
            listening = len(self._table) > 0
        return (
            listening
            and self.backend.is_idle
            and not seams.has_stock_channels(self.transport)
        )

    def _guard(self, handle: Callable[[], None]) -> None:
        """Run a handler; end the connection if the peer broke the protocol."""
        try:
            handle()
        except ProtocolError as error:
            self._outbox.fail(error)
