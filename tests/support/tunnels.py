"""Tunnels for the tests: transports to a test's sshd, targets and visitors."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import paramiko

import rtunnel
from rtunnel import Tunnel
from rtunnel.bench.sshd import Login
from tests.support.sshd import Sshd

# Every test of the contract runs on each of these.
BACKENDS = ("engine", "pump", "python")

TIMEOUT_S = 20.0

# Not "localhost": for that sshd picks a port on ::1 and goes on without 127.0.0.1
# if the same port happens to be taken there.
PORT_0 = ("127.0.0.1", 0)


def open_transport(
    sshd: Sshd | Login, kind: type[paramiko.Transport] = paramiko.Transport
) -> paramiko.Transport:
    """Connect and authenticate a transport: a stock one, or of another class."""
    transport = kind(("127.0.0.1", sshd.port))
    key = paramiko.Ed25519Key.from_private_key_file(str(sshd.user_key))
    transport.connect(username=sshd.user, pkey=key)
    return transport


def open_tunnel(sshd: Sshd, backend: str) -> Tunnel:
    """Open a tunnel on the transport that the backend needs."""
    return Tunnel(open_transport(sshd, transport_class(backend)), backend=backend)


def transport_class(backend: str) -> type[paramiko.Transport]:
    """Return the class of transport that a backend runs on."""
    return rtunnel.Transport if backend == "engine" else paramiko.Transport


class Target:
    """A TCP server that calls `serve(conn)` for each connection, on its own thread.

    On any free port, or on that of a target that is closed.
    """

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._serve = serve
        self.accepted = 0
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self.spec = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._conns: list[tuple[threading.Thread, socket.socket]] = []

    def _run(self) -> None:
        while True:
            try:
                conn, _ = self._socket.accept()
            except OSError:
                return
            conn.settimeout(TIMEOUT_S)
            self.accepted += 1
            thread = threading.Thread(target=self._one, args=(conn,), daemon=True)
            self._conns.append((thread, conn))
            thread.start()

    def _one(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            self._serve(conn)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(TIMEOUT_S)
        for thread, conn in self._conns:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT_S)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def echo(conn: socket.socket) -> None:
    """Send back what comes, until the end of the stream."""
    while data := conn.recv(65536):
        conn.sendall(data)


def say(text: bytes) -> Callable[[socket.socket], None]:
    """Return a server that sends `text` and closes."""

    def serve(conn: socket.socket) -> None:
        conn.sendall(text)

    return serve


def visit(port: int) -> socket.socket:
    """Connect to a port of the server, which runs on this machine."""
    sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    sock.settimeout(TIMEOUT_S)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the stream."""
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def read_end(sock: socket.socket) -> bytes | None:
    """Read to the end; None if it was a reset."""
    try:
        return read_all(sock)
    except (ConnectionResetError, BrokenPipeError):
        return None


def read_exactly(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        data = sock.recv(min(count, 65536))
        assert data, f"the stream ended {count} bytes too early"
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    """Send, then say that nothing follows."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ask(port: int) -> bytes:
    """Visit, say that nothing follows, and return all of the answer."""
    with visit(port) as sock:
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


@contextlib.contextmanager
def background(
    function: Callable[..., object], *args: object
) -> Iterator[list[object]]:
    """Run a function beside the block; its result is in the list afterwards."""
    results: list[object] = []
    thread = threading.Thread(
        target=lambda: results.append(function(*args)), daemon=True
    )
    thread.start()
    yield results
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def noise(count: int) -> bytes:
    return os.urandom(count)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
