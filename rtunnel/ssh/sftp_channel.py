"""SFTP over a pumped channel: a socket that `paramiko.SFTPClient` takes for a channel.

paramiko's channel hands each byte of a file through its transport's thread and a buffer
that moves all that waits in it at every read. Here the engine moves the bytes between
the SSH connection and a local socket, and the SFTP client reads from that.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any

import paramiko

from rtunnel.ssh.connection import Connection
from rtunnel.ssh.engine_backend import EngineBackend, EngineRelay
from rtunnel.ssh.sftp_client import SftpClient
from rtunnel.wire import string

if TYPE_CHECKING:
    from rtunnel.ssh.transport import Transport

# What a session channel of sshd may take to start its subsystem.
SUBSYSTEM_TIMEOUT_S = 60.0


class SftpChannel:
    """One end of the local socket, with the methods of a `paramiko.Channel` that make
    sense on it: what SFTP and its users call."""

    def __init__(
        self, transport: Transport, sock: socket.socket, relay: EngineRelay
    ) -> None:
        self._transport = transport
        self._sock = sock
        self._relay = relay
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._name = str(relay.local_id)
        # The hot ones without a call in between.
        self.send = sock.send
        self.sendall = sock.sendall
        self.sendmsg = sock.sendmsg
        self.recv = sock.recv
        self.settimeout = sock.settimeout
        self.gettimeout = sock.gettimeout
        self.setblocking = sock.setblocking
        self.fileno = sock.fileno
        self.shutdown = sock.shutdown

    @property
    def closed(self) -> bool:
        """Whether either side has closed the channel."""
        return self._sock.fileno() < 0 or self._relay.ended

    def recv_ready(self) -> bool:
        """Return whether `recv` would not wait."""
        return bool(self._readable.poll(0))

    def close(self) -> None:
        """Close this side; the channel follows."""
        self._sock.close()

    def get_name(self) -> str:
        """Return the name in the log."""
        return self._name

    def set_name(self, name: str) -> None:
        """Set the name in the log."""
        self._name = name

    def get_id(self) -> int:
        """Return our number of the channel."""
        return self._relay.local_id

    def get_transport(self) -> Transport:
        """Return the transport that carries the channel."""
        return self._transport

    def getpeername(self) -> Any:
        """Return the address of the server."""
        return self._transport.getpeername()


def open_sftp_client(transport: Transport) -> paramiko.SFTPClient:
    """Open a session channel, start SFTP on it, and return its client.

    Waits for the server. Raises ChannelOpenError, SSHException if the server has no
    SFTP subsystem, ConnectionLost.
    """
    connection = Connection.of(transport)
    backend = connection.backend
    assert isinstance(backend, EngineBackend)
    ours, theirs = socket.socketpair()
    try:
        relay = connection.open("session", b"", theirs)
        assert isinstance(relay, EngineRelay)
        if not backend.request(relay, "subsystem", string("sftp"), SUBSYSTEM_TIMEOUT_S):
            relay.reset()
            raise paramiko.SSHException("the server refused to start SFTP")
        channel: Any = SftpChannel(transport, ours, relay)
        return SftpClient(channel)
    except BaseException:
        ours.close()
        raise
