"""A long stream from the server is read in portions, and nothing stays behind."""

from __future__ import annotations

import socket

from tests.support.sshd import Sshd
from tests.support.tunnels import PORT_0, Target, open_tunnel, read_exactly, visit

# Far over the 16 MiB from which on portions are read (src/pump/engine_impl.h).
STREAM_BYTES = 64 * 1024 * 1024
CHUNK = bytes(range(256)) * 4096


def count_and_echo(conn: socket.socket) -> None:
    """Swallow the stream, say so, then echo every message."""
    left = STREAM_BYTES
    while left:
        left -= len(conn.recv(min(left, 1 << 20)))
    conn.sendall(b"all here")
    while data := conn.recv(65536):
        conn.sendall(data)


def test_the_last_bytes_of_a_stream_and_a_message_behind_it_arrive(sshd: Sshd) -> None:
    with Target(count_and_echo) as target, open_tunnel(sshd, "engine") as tunnel:
        port = tunnel.listen(PORT_0, to=target.spec).port
        with visit(port) as visitor:
            for _ in range(STREAM_BYTES // len(CHUNK)):
                visitor.sendall(CHUNK)
            assert read_exactly(visitor, 8) == b"all here"
            for message in (b"a", b"few bytes", b"more"):
                visitor.sendall(message)
                assert read_exactly(visitor, len(message)) == message


def test_streams_one_after_the_other_do_not_wait_for_each_other(sshd: Sshd) -> None:
    with Target(count_and_echo) as target, open_tunnel(sshd, "engine") as tunnel:
        port = tunnel.listen(PORT_0, to=target.spec).port
        for _ in range(2):
            with visit(port) as visitor, visit(port) as other:
                for _ in range(STREAM_BYTES // len(CHUNK)):
                    visitor.sendall(CHUNK)
                    other.sendall(CHUNK)
                assert read_exactly(visitor, 8) == b"all here"
                assert read_exactly(other, 8) == b"all here"
