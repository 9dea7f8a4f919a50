"""One client of the gateway: its connection, its key, its requests, its visitors.

Two threads meet here. The transport's thread takes the client's messages; it decides
alone who gets in, and refuses channels. Everything about listeners it hands to the
loop, request by request: so replies leave in the order of the requests (RFC 4254,
section 4), and a reply before the first visitor of the port it grants.

What clients ask for and do not get, they are told so that they can act on it: the
reason goes out as a DEBUG message (ssh -v shows it, rtunnel quotes it) just before
the failure, which itself has no text.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, NoReturn

from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL
from paramiko.message import Message

from rtunnel.errors import (
    DisconnectCode,
    OpenFailureCode,
    ProtocolError,
    RTunnelError,
)
from rtunnel.forwards import (
    DIRECT_STREAMLOCAL,
    DIRECT_TCPIP,
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
)
from rtunnel.gateway.certificates import CERTIFICATE_SUFFIX
from rtunnel.gateway.direct import DirectChannels
from rtunnel.gateway.door import AUTH_METHODS, Door
from rtunnel.gateway.feeder import Feeder
from rtunnel.gateway.listeners import (
    Listeners,
    Refused,
    Request,
    TcpRequest,
    UnixRequest,
    VisitorListener,
)
from rtunnel.gateway.loop import Loop, Timer
from rtunnel.gateway.penalties import Failure
from rtunnel.gateway.processes import Processes
from rtunnel.gateway.settings import Limits
from rtunnel.gateway.transport import MSG_USERAUTH_REQUEST, ServerTransport
from rtunnel.gateway.users import Login, Users
from rtunnel.gateway.visitors import Visitor
from rtunnel.ssh import seams
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.openings import Opened, read_peer_side
from rtunnel.ssh.outbox import Outbox
from rtunnel.ssh.relay import PeerSide, RelayEnd
from rtunnel.tunnel.dialler import Dialler
from rtunnel.wire import Reader, boolean, string, u32

log = logging.getLogger("rtunnel.gateway.session")
# There may be many more of them than of clients.
visitor_log = logging.getLogger("rtunnel.gateway.visitors")

MSG_DEBUG: Final = 4
MSG_USERAUTH_FAILURE: Final = 51

# How a client may sign, with which type of key: no SHA-1.
SIGNATURE_ALGORITHMS: Final = {
    "ssh-ed25519": "ssh-ed25519",
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "rsa-sha2-256": "ssh-rsa",
    "rsa-sha2-512": "ssh-rsa",
}
# Requests of one client that wait for the loop, which needs well under a millisecond
# for each. A client with more of them is not asking, but flooding.
WAITING_REQUESTS_MAX: Final = 4096

NO_SESSION: Final = "this gateway serves reverse tunnels only: use ssh -N -R"
NO_DIRECT: Final = "this gateway opens no connections for its clients"

_TCP_REQUESTS: Final = ("tcpip-forward", "cancel-tcpip-forward")
_UNIX_REQUESTS: Final = (
    "streamlocal-forward@openssh.com",
    "cancel-streamlocal-forward@openssh.com",
)
_REFUSED_CHANNELS: Final = {
    "session": NO_SESSION,
    DIRECT_TCPIP: NO_DIRECT,
    DIRECT_STREAMLOCAL: NO_DIRECT,
}
_TOO_MANY: Final = (OpenFailureCode.RESOURCE_SHORTAGE, "too many channels")


@dataclass(frozen=True, slots=True)
class _GlobalRequest:
    """A request of the client; `place` for those about listeners."""

    kind: str
    wants_reply: bool
    place: Request | None


@dataclass(frozen=True, slots=True)
class House:
    """What all clients of a gateway share."""

    loop: Loop
    listeners: Listeners
    feeder: Feeder
    dialler: Dialler
    users: Users
    limits: Limits
    # Who has logged in: a reason not to serve them, or None. The transport's thread.
    on_login: Callable[[Session], str | None]
    # Who is gone. The loop's thread.
    on_end: Callable[[Session], None]


class Session:
    """One client, from the first packet to the last.

    Methods without a remark are for the loop's thread.
    """

    def __init__(
        self, transport: ServerTransport, origin: tuple[str, int], house: House
    ) -> None:
        self.transport = transport
        self.origin = origin
        self.since = datetime.now(UTC)
        self._house = house
        self._loop = house.loop
        self._listeners = house.listeners
        self._ended = False
        self._grace: Timer | None = None
        self._grace_exceeded = False
        self._waiting = threading.BoundedSemaphore(WAITING_REQUESTS_MAX)
        # Written by the transport's thread, before anything of the client reaches the
        # loop.
        self._login: Login | None = None
        self._connection: Connection | None = None
        self._processes: Processes | None = None
        self._direct: DirectChannels | None = None
        self._tries = 0
        self._offered = b""
        self._admitted = False

    def __str__(self) -> str:
        return f"{id(self.transport):x}"

    def start(self) -> None:
        """Start the transport's thread."""
        handlers = seams.handler_table(self.transport)
        handlers[MSG_USERAUTH_REQUEST] = self._on_auth_request
        handlers[seams.MSG_GLOBAL_REQUEST] = self._on_global_request
        self._stock_open = handlers[seams.MSG_CHANNEL_OPEN]
        handlers[seams.MSG_CHANNEL_OPEN] = self._on_channel_open
        self._watch = seams.watch_end(self.transport, self._on_stranger_end)
        limits = self._house.limits
        self._grace = self._loop.call_later(limits.login_grace_s, self._see_login)
        self.transport.begin(Door(self))

    @property
    def address(self) -> str:
        """Where the client comes from. Any thread."""
        host, port = self.origin
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def login(self) -> Login:
        """Who the client has logged in as. Any thread, after that."""
        assert self._login is not None
        return self._login

    @property
    def processes(self) -> Processes:
        """What the client runs here. Any thread, after login."""
        assert self._processes is not None
        return self._processes

    @property
    def connection(self) -> Connection:
        """The connection, once the client has logged in. Any thread."""
        assert self._connection is not None
        return self._connection

    @property
    def is_authenticated(self) -> bool:
        """Whether the client has logged in. Any thread."""
        return self._connection is not None

    @property
    def failure(self) -> Failure | None:
        """What the client is to be penalised for, at its end."""
        if self.is_authenticated:
            return None
        if self._grace_exceeded:
            return Failure.GRACE_EXCEEDED
        return Failure.AUTH if self._tries else Failure.NO_AUTH

    def is_alive(self) -> bool:
        """Whether the connection stands, as far as is known. Any thread."""
        return not self._ended and bool(self.transport.is_active())

    def has_room(self) -> bool:
        """Whether the client may have one more channel. Any thread, after login."""
        listeners = self._listeners.of(self)
        open_count = sum(listener.traffic.open_count for listener in listeners)
        if self._direct is not None:
            open_count += self._direct.count
        return open_count < self.login.rights.channels_max

    def is_ending(self) -> bool:
        """Whether the thread of the transport still runs. Any thread."""
        return bool(self.transport.is_alive())

    def abort(self) -> None:
        """Cut the connection; the transport's thread ends it. Never blocks."""
        # Not closed here: its number may be another socket's before that thread looks.
        with contextlib.suppress(OSError):
            self.transport.sock.shutdown(socket.SHUT_RDWR)

    def close(self, timeout_s: float) -> None:
        """End the connection in order, and wait for its threads. Not the loop's."""
        if self._connection is None:
            self.abort()
        else:
            self.transport.close()
            self._connection.join(timeout_s)
        self.transport.join(timeout_s)

    def _see_login(self) -> None:
        if not self.is_authenticated:
            log.warning("login took too long: conn=%s address=%s", self, self.address)
            self._grace_exceeded = True
            self.abort()

    def _on_stranger_end(self) -> None:
        reason = seams.end_of(self.transport) or "closed"
        self._on_transport_end(f"before login: {reason}")

    def _on_transport_end(self, reason: object) -> None:
        """Take note of the end. On the transport's thread, or who closed it."""
        self._loop.call(partial(self._end, reason))

    def _end(self, reason: object) -> None:
        if self._ended:
            return
        self._ended = True
        if self._grace is not None:
            self._grace.cancel()
        self._listeners.close_all(self)
        if self._processes is not None:
            self._processes.close()
        log.info("client gone: conn=%s reason=%s", self, reason)
        self._house.on_end(self)

    # Logging in: on the transport's thread.

    def admit(self, user: str) -> int:
        """Say whether a key may log in; its owner has still to prove that it is."""
        login = self._house.users.login(user, self._offered, self.origin[0])
        if login is None:
            return AUTH_FAILED
        self._admitted = True
        self._login = login
        return AUTH_SUCCESSFUL

    def _on_auth_request(self, message: Message) -> None:
        """Let paramiko check a login, except for keys that would make it hang up.

        A client offers its keys one by one, and paramiko ends the connection at the
        first whose kind it does not know: one security key in an agent would keep the
        right key from being tried.

        Payload::
            string  user name, service, method
            publickey:
                boolean whether a signature follows
                string  algorithm, public key
        """
        if self.is_authenticated:
            return
        fields = Reader(seams.payload(message))
        is_signed, algorithm, blob = False, "", b""
        try:
            _, _, method = fields.text(), fields.text(), fields.text()
            if method == "publickey":
                is_signed, algorithm = fields.boolean(), fields.text()
                blob = fields.string()
        except ProtocolError as error:
            self._fail(error)
        self._offered, self._admitted = blob, False
        if method == "publickey" and not _is_usable(algorithm, blob):
            self._refuse_foreign_key()
        elif self.transport.check_login(seams.rewind(message)):
            self._let_in()
            return
        # As in sshd: asking what would do costs nothing, and neither does asking
        # whether a key would do that does.
        if method != "none" and (is_signed or not self._admitted):
            self._tries += 1
        if self._tries >= self._house.limits.auth_tries_max:
            log.warning("too many failed logins: conn=%s from=%s", self, self.address)
            self._fail(
                ProtocolError(
                    "too many authentication failures",
                    DisconnectCode.NO_MORE_AUTH_METHODS_AVAILABLE,
                )
            )

    def _refuse_foreign_key(self) -> None:
        packet = bytes([MSG_USERAUTH_FAILURE]) + string(AUTH_METHODS) + boolean(False)
        seams.send_now(self.transport, packet)

    def _let_in(self) -> None:
        try:
            connection = Connection.of(self.transport)
        except RTunnelError as error:
            log.error("cannot serve a client: conn=%s reason=%s", self, error)
            raise EOFError(str(error)) from error
        house = self._house
        self._processes = Processes(self._loop, connection, self.login)
        self._direct = DirectChannels(
            house.dialler, house.feeder, connection, self.login
        )
        seams.after_channel_requests(self.transport, self._processes.answered)
        self._connection = connection
        reason = house.on_login(self)
        # Now the connection watches for the end, in the place of `_watch`.
        connection.add_end_callback(self._on_transport_end)
        if reason is not None:
            log.warning("refused a client: address=%s reason=%s", self.address, reason)
            self._fail(ProtocolError(reason, DisconnectCode.TOO_MANY_CONNECTIONS))
        key = self.login.key
        log.info(
            "client in: conn=%s user=%r address=%s key=%s place=%r",
            self,
            self.login.user,
            self.address,
            key.fingerprint,
            key.place,
        )
        limits = house.limits
        if limits.client_alive_interval_s:
            self.transport.set_keepalive(
                limits.client_alive_interval_s, limits.client_alive_count_max
            )

    # Global requests: taken on the transport's thread, served on the loop's.

    def _on_global_request(self, message: Message) -> None:
        """Read a request and hand it to the loop.

        Payload::
            string  kind
            boolean want reply
            tcpip-forward, cancel-tcpip-forward:
                string address, uint32 port
            streamlocal-forward@openssh.com, cancel-streamlocal-forward@openssh.com:
                string socket path
        """
        fields = Reader(seams.payload(message))
        place: Request | None = None
        try:
            kind, wants_reply = fields.text(), fields.boolean()
            if kind in _TCP_REQUESTS:
                place = TcpRequest(fields.text(), fields.u32())
            elif kind in _UNIX_REQUESTS:
                place = UnixRequest(fields.text())
        except ProtocolError as error:
            self._fail(error)
        if not self._waiting.acquire(blocking=False):
            self._fail(ProtocolError("too many requests at once"))
        request = _GlobalRequest(kind, wants_reply, place)
        self._loop.call(partial(self._serve, request))

    def _serve(self, request: _GlobalRequest) -> None:
        self._waiting.release()
        if self._ended:
            return
        reply: bytes | None = None
        if request.place is not None:
            if request.kind.startswith("cancel-"):
                reply = self._cancel(request.place)
            else:
                reply = self._listen(request.place)
        if not request.wants_reply:
            return
        if reply is None:
            self._send(bytes([seams.MSG_REQUEST_FAILURE]))
        else:
            self._send(bytes([seams.MSG_REQUEST_SUCCESS]) + reply)

    def _listen(self, place: Request) -> bytes | None:
        """Listen; return the payload of the reply, None to refuse.

        Payload (only if port 0 was asked for: RFC 4254, section 7.1)::
            uint32  port
        """
        try:
            listener = self._listeners.open(self, place)
        except Refused as reason:
            log.warning("refused to listen: conn=%s place=%s: %s", self, place, reason)
            self._say(str(reason))
            return None
        log.info("listening: conn=%s place=%s", self, listener)
        asked_for_any = isinstance(place, TcpRequest) and place.port == 0
        return u32(listener.port) if asked_for_any else b""

    def _cancel(self, place: Request) -> bytes | None:
        if not self._listeners.cancel(self, place):
            self._say(f"no listener of this connection is on {place}")
            return None
        log.info("cancelled: conn=%s place=%s", self, place)
        return b""

    # Visitors.

    def visit(
        self,
        listener: VisitorListener,
        visitor: Visitor,
        on_failed: Callable[[], object],
    ) -> None:
        """Open a channel for a visitor of ours, and pump when the client confirms.

        Payload::
            forwarded-tcpip:
                string  address as it was requested, uint32 port that was connected to
                string  address, uint32 port of the visitor
            forwarded-streamlocal@openssh.com:
                string  socket path as it was requested
                string  reserved
        """
        assert self._connection is not None
        request, traffic = listener.request, listener.traffic
        if isinstance(request, TcpRequest):
            kind = FORWARDED_TCPIP
            payload = string(request.address) + u32(listener.port)
            payload += string(visitor.origin[0]) + u32(visitor.origin[1])
        else:
            kind = FORWARDED_STREAMLOCAL
            payload = string(request.path) + string("")

        def opened(result: Opened) -> None:
            if isinstance(result, Exception):
                visitor_log.info(
                    "visitor turned away: conn=%s place=%s: %s", self, listener, result
                )
                traffic.failed(visitor, result)
                on_failed()
            else:
                traffic.opened(visitor, result)
                visitor.settle()

        def ended(end: RelayEnd) -> None:
            traffic.ended(visitor, end)
            visitor_log.info(
                "visitor gone: conn=%s place=%s from=%s:%d duration_s=%.3f "
                "bytes_in=%d bytes_out=%d reason=%s",
                self,
                listener,
                *visitor.origin,
                time.monotonic() - visitor.came_s,
                end.bytes_out,
                end.bytes_in,
                end.reason,
            )

        traffic.ask(visitor)
        self._connection.open_later(kind, payload, visitor.sock, opened, ended)

    # Channels of the client: on the transport's thread.

    def _on_channel_open(self, message: Message) -> None:
        """Refuse what a client wants to open, unless it is switched on for it.

        Payload::
            string  channel type
            uint32  sender channel, initial window, max packet
            direct-tcpip:
                string  host, uint32 port to connect to
                string  address, uint32 port of who wants to
            others:
                ....    data of this type
        """
        fields = Reader(seams.payload(message))
        host, port = "", 0
        try:
            kind, peer = fields.text(), read_peer_side(fields)
            if kind == DIRECT_TCPIP:
                host, port = fields.text(), fields.u32()
        except ProtocolError as error:
            self._fail(error)
        assert self._direct is not None
        if kind == DIRECT_TCPIP and self.login.rights.permit_open:
            if self.has_room():
                self._direct.open(peer, host, port)
            else:
                self._refuse_channel(kind, peer, *_TOO_MANY)
        elif kind == "session" and self.processes.offered:
            if self.processes.has_room:
                self._stock_open(seams.rewind(message))
                self.processes.adopt(self.transport.accept(0.0))
            else:
                self._refuse_channel(kind, peer, *_TOO_MANY)
        elif kind in _REFUSED_CHANNELS:
            code = OpenFailureCode.ADMINISTRATIVELY_PROHIBITED
            self._refuse_channel(kind, peer, code, _REFUSED_CHANNELS[kind])
        else:
            code = OpenFailureCode.UNKNOWN_CHANNEL_TYPE
            text = "this gateway has no channels of that type"
            self._refuse_channel(kind, peer, code, text)

    def _refuse_channel(
        self, kind: str, peer: PeerSide, code: OpenFailureCode, text: str
    ) -> None:
        log.warning("refused a channel: conn=%s type=%r", self, kind)
        assert self._connection is not None
        self._connection.send_open_failure(peer, code, text)

    # Sending.

    def _send(self, packet: bytes) -> None:
        Outbox.of(self.transport).send(packet)

    def _say(self, text: str) -> None:
        """Tell the client why, in a message for its log.

        Payload::
            boolean always display
            string  message, language
        """
        self._send(bytes([MSG_DEBUG]) + boolean(False) + string(text) + string("en"))

    def _fail(self, error: ProtocolError) -> NoReturn:
        """End the connection for what the client did. On the transport's thread."""
        Outbox.of(self.transport).fail(error)


def _is_usable(algorithm: str, blob: bytes) -> bool:
    """Say whether a key is of a kind that is used here, and is what it claims to be."""
    plain = algorithm.removesuffix(CERTIFICATE_SUFFIX)
    key_type = SIGNATURE_ALGORITHMS.get(plain)
    if key_type is None:
        return False
    if plain != algorithm:
        key_type += CERTIFICATE_SUFFIX
    try:
        return Reader(blob).text() == key_type
    except ProtocolError:
        return False
