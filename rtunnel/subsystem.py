"""A small SSH server: one user with one key gets one subsystem, and nothing else.

It serves clients that call back, through a port of ours on their own machine: what
they connect to is a socket here, on which this speaks SSH as the server. No shell, no
command, no forwarding, no password; no file is read, and no port is opened.

Theory of operation. All decisions are made on the thread of the client's transport: a
login is looked at by paramiko only if it is that user with that key; a session channel
is confirmed at once, and pumped to one end of a socketpair; when the request for the
subsystem comes, the other end is given to a thread that serves it. What the client
sends meanwhile waits in the socket.
"""

from __future__ import annotations

import base64
import io
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn, Self

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL
from paramiko.message import Message

from rtunnel.errors import ConnectionLost, OpenFailureCode, ProtocolError, RTunnelError
from rtunnel.gateway.transport import MSG_USERAUTH_REQUEST, ServerTransport
from rtunnel.ssh import seams
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.openings import read_peer_side
from rtunnel.ssh.relay import RelayEnd
from rtunnel.wire import Reader, boolean, string

log = logging.getLogger("rtunnel.subsystem")

MSG_USERAUTH_FAILURE: Final = 51
AUTH_METHODS: Final = "publickey"
KEY_TYPE: Final = "ssh-ed25519"
# As sshd: LoginGraceTime, MaxSessions. Failed logins: a client offers all keys of its
# agent before that of its command line, so more than sshd's MaxAuthTries.
LOGIN_GRACE_S: Final = 120.0
MOST_CHANNELS: Final = 10
MOST_REFUSED_LOGINS: Final = 100
# How long `close` waits for each client's threads.
JOIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ed25519 key, made for one use and kept in memory only.

    `private_text` is the file of OpenSSH's format without a passphrase, `public_line`
    is `ssh-ed25519 BASE64`.
    """

    private_text: str = field(repr=False)
    public_line: str

    @classmethod
    def generate(cls) -> Self:
        """Make a new one."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return cls(private.decode(), public.decode())

    @property
    def blob(self) -> bytes:
        """The public key as it is on the wire."""
        return base64.b64decode(self.public_line.split()[1])


class SubsystemServer:
    """Serves one subsystem to one user, on any number of connected sockets.

    `serve(conn)` is called for each channel on which the client asks for the subsystem
    `name`, on a thread of its own, with a real socket that carries its bytes; the
    channel ends when it returns. `attend` is a handler for `Tunnel.listen(to=)`.
    Methods may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[socket.socket], object],
        *,
        user: str,
        key: KeyPair,
        host_key: KeyPair,
    ) -> None:
        # Read-only after construction.
        self.name = name
        self.serve = serve
        self.user = user
        self.key_blob = key.blob
        self._host_key = host_key
        # Protected by _lock.
        self._lock = threading.Lock()
        self._clients: set[_Client] = set()
        self._closed = False

    @property
    def clients(self) -> int:
        """How many are connected, logged in or not."""
        with self._lock:
            return len(self._clients)

    def attend(self, conn: socket.socket) -> None:
        """Serve one client, which is connected by `conn`, until it is gone. Blocks.

        Owns `conn`. What the client does wrong is logged, not raised.
        """
        host_key = paramiko.Ed25519Key.from_private_key(
            io.StringIO(self._host_key.private_text)
        )
        client = _Client(self, ServerTransport(conn, host_key))
        with self._lock:
            if not self._closed:
                self._clients.add(client)
            closed = self._closed
        if closed:
            conn.close()
            return
        try:
            client.run()
        finally:
            with self._lock:
                self._clients.discard(client)

    def close(self) -> None:
        """Cut off all clients, and wait for their threads to end, 5 s each at most."""
        with self._lock:
            self._closed = True
            clients = list(self._clients)
        for client in clients:
            client.abort()
        for client in clients:
            client.join(JOIN_S)


class _Door(paramiko.ServerInterface):
    """What paramiko asks: only the one key opens, and nothing else is granted."""

    def __init__(self, server: SubsystemServer) -> None:
        self._server = server

    def get_allowed_auths(self, username: str) -> str:
        return AUTH_METHODS

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        right = username == self._server.user and key.asbytes() == self._server.key_blob
        return AUTH_SUCCESSFUL if right else AUTH_FAILED


class _Client:
    """One client, from the first packet to the last."""

    def __init__(self, server: SubsystemServer, transport: ServerTransport) -> None:
        self._server = server
        self._transport = transport
        self._ended = threading.Event()
        self._gone = threading.Event()
        # Written by the transport's thread.
        self._connection: Connection | None = None
        self._refused_logins = 0
        # Protected by _lock.
        self._lock = threading.Lock()
        self._channels: set[_Channel] = set()

    def __str__(self) -> str:
        return f"{id(self._transport):x}"

    def run(self) -> None:
        """Serve it until it is gone and all threads of it have ended."""
        transport = self._transport
        handlers = seams.handler_table(transport)
        handlers[MSG_USERAUTH_REQUEST] = self._on_auth_request
        handlers[seams.MSG_CHANNEL_OPEN] = self._on_channel_open
        watch = seams.watch_end(transport, self._ended.set)
        transport.begin(_Door(self._server))
        if not self._ended.wait(LOGIN_GRACE_S) and self._connection is None:
            log.warning("login took too long: conn=%s", self)
            self.abort()
        self._ended.wait()
        del watch
        transport.close()
        transport.join(JOIN_S)
        if self._connection is not None:
            self._connection.join(JOIN_S)
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            channel.join(JOIN_S)
        self._gone.set()
        log.info("client gone: conn=%s", self)

    def abort(self) -> None:
        """Cut the connection; `run` does the rest. Never blocks."""
        seams.abort(self._transport)

    def join(self, timeout_s: float) -> None:
        """Wait until `run` is through with it."""
        self._gone.wait(timeout_s)

    # On the transport's thread.

    def _on_auth_request(self, message: Message) -> None:
        """Let paramiko check the one login that can succeed; refuse all others.

        paramiko ends the connection at a key of a kind that it does not know, and
        after ten failures: but a client may have many keys in its agent.

        Payload::
            string  user name, service, method
            publickey:
                boolean whether a signature follows
                string  algorithm, public key
        """
        if self._connection is not None:
            return
        fields = Reader(seams.payload(message))
        wanted = self._server
        try:
            user, _, method = fields.text(), fields.text(), fields.text()
            ours = method == "publickey" and user == wanted.user
            if ours:
                fields.boolean()
                ours = fields.text() == KEY_TYPE and fields.string() == wanted.key_blob
        except ProtocolError as error:
            self._fail(error)
        if not ours:
            self._refuse_login()
        elif self._transport.check_login(seams.rewind(message)):
            self._let_in()

    def _refuse_login(self) -> None:
        self._refused_logins += 1
        if self._refused_logins > MOST_REFUSED_LOGINS:
            self._fail(ProtocolError("too many logins were refused"))
        packet = bytes([MSG_USERAUTH_FAILURE]) + string(AUTH_METHODS) + boolean(False)
        seams.send_now(self._transport, packet)

    def _let_in(self) -> None:
        try:
            connection = Connection.of(self._transport)
        except RTunnelError as error:
            log.error("cannot serve a client: conn=%s reason=%s", self, error)
            raise EOFError(str(error)) from error
        self._connection = connection
        log.info("client in: conn=%s backend=%s", self, connection.backend.name)
        connection.add_end_callback(lambda lost: self._ended.set())

    def _on_channel_open(self, message: Message) -> None:
        """Take session channels, and refuse all others.

        Payload::
            string  channel type
            uint32  sender channel, initial window, max packet
            ....    data of this type
        """
        connection = self._connection
        assert connection is not None  # paramiko lets nobody here before login
        fields = Reader(seams.payload(message))
        try:
            kind, peer = fields.text(), read_peer_side(fields)
        except ProtocolError as error:
            self._fail(error)
        if kind != "session":
            code = OpenFailureCode.ADMINISTRATIVELY_PROHIBITED
            text = f"this server has the subsystem {self._server.name} only"
            connection.send_open_failure(peer, code, text)
            return
        with self._lock:
            full = len(self._channels) >= MOST_CHANNELS
        try:
            ours, theirs = (None, None) if full else socket.socketpair()
        except OSError:
            ours, theirs = None, None
        if ours is None or theirs is None:
            code = OpenFailureCode.RESOURCE_SHORTAGE
            connection.send_open_failure(peer, code, "too many channels")
            return
        channel = _Channel(self._server, theirs, self._forget)
        with self._lock:
            self._channels.add(channel)
        try:
            connection.backend.accept(
                peer, ours, channel.on_end, "auto", channel.on_request
            )
        except ConnectionLost:
            channel.on_end(None)

    def _forget(self, channel: _Channel) -> None:
        with self._lock:
            self._channels.discard(channel)

    def _fail(self, error: ProtocolError) -> NoReturn:
        log.warning("cutting a client off: conn=%s reason=%s", self, error)
        raise EOFError(str(error)) from error


class _Channel:
    """A session channel: nothing happens on it until its subsystem is asked for."""

    def __init__(
        self,
        server: SubsystemServer,
        sock: socket.socket,
        forget: Callable[[_Channel], None],
    ) -> None:
        self._server = server
        self._sock = sock
        self._forget = forget
        self._thread: threading.Thread | None = None

    def on_request(self, kind: str, fields: Reader) -> bool:
        """Start the subsystem if that is what is asked for. Transport's thread.

        Payload of "subsystem"::
            string  name
        """
        if kind != "subsystem" or self._thread is not None:
            return False
        if fields.text() != self._server.name:
            return False
        name = f"rtunnel-{self._server.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        return True

    def on_end(self, end: RelayEnd | None) -> None:
        """The channel is over; its thread sees the end of the stream."""
        if self._thread is None:
            self._sock.close()
            self._forget(self)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        with self._sock:
            try:
                self._server.serve(self._sock)
            except Exception:
                log.exception("a subsystem failed: name=%s", self._server.name)
        self._forget(self)
