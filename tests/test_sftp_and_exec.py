"""SFTP and exec on a transport whose forwarded ports are busy, and through rekeys."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

import rtunnel
from rtunnel import Tunnel
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.engine_backend import EngineBackend, EngineRelay
from rtunnel.wire import string
from tests.support.sshd import Sshd
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    background,
    echo,
    noise,
    read_all,
    read_exactly,
    visit,
)

BIG_BYTES = 100_000_000
BLOCK_BYTES = 256 * 1024
# A pair of keys does not last for one block of the traffic.
REKEY_BYTES = 256 * 1024


@contextlib.contextmanager
def connected(
    sshd: Sshd, rekey_bytes: int | None = None
) -> Iterator[rtunnel.Transport]:
    """Yield a transport that the engine runs."""
    address = ("127.0.0.1", sshd.port)
    with rtunnel.Transport(
        address, backend="engine", rekey_bytes=rekey_bytes
    ) as transport:
        key = paramiko.Ed25519Key.from_private_key_file(str(sshd.user_key))
        transport.connect(username=sshd.user, pkey=key)
        assert transport.engine_status.active
        yield transport


@contextlib.contextmanager
def busy_port(transport: rtunnel.Transport) -> Iterator[list[int]]:
    """Keep a forwarded port busy beside the block, and check every byte of it.

    The list holds how many bytes went there and back, after the block.
    """
    tunnel = Tunnel(transport)
    assert tunnel.backend == "engine"
    stop = threading.Event()
    moved: list[int] = []

    def chatter(port: int) -> bool:
        total = 0
        with visit(port) as sock:
            while not stop.is_set():
                block = noise(BLOCK_BYTES)
                sock.sendall(block)
                assert read_exactly(sock, BLOCK_BYTES) == block
                total += BLOCK_BYTES
        moved.append(total)
        return True

    with Target(echo) as target, tunnel.listen(PORT_0, to=target.spec) as listener:
        with background(chatter, listener.port) as done:
            try:
                yield moved
            finally:
                stop.set()
        assert done == [True]


def rekeys(caplog: pytest.LogCaptureFixture) -> int:
    """Return how many key exchanges there were after the first."""
    return sum(r.getMessage() == "Switch to new keys ..." for r in caplog.records) - 1


def run_with_three_streams(transport: rtunnel.Transport, half: int) -> None:
    """Exec: what goes in comes back, one half on stdout, the other on stderr."""
    content = noise(2 * half)
    channel = transport.open_session()
    channel.settimeout(TIMEOUT_S)
    channel.exec_command(f"head -c {half}; cat >&2; exit 7")

    def feed() -> bool:
        channel.sendall(content)
        channel.shutdown_write()
        return True

    with (
        background(feed) as fed,
        background(channel.makefile_stderr("rb").read) as complaints,
    ):
        output = read_all(channel)
    assert fed == [True]
    assert output == content[:half]
    assert complaints == [content[half:]]
    assert channel.recv_exit_status() == 7


def test_100_mb_go_through_sftp_while_a_port_is_busy(
    sshd: Sshd, tmp_path: Path
) -> None:
    content = noise(BIG_BYTES)
    path = tmp_path / "content"
    with (
        connected(sshd) as transport,
        busy_port(transport) as moved,
        transport.open_sftp_client() as sftp,
    ):
        sftp.putfo(io.BytesIO(content), str(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        assert digest == hashlib.sha256(content).digest()
        received = io.BytesIO()
        sftp.getfo(str(path), received)
        assert received.getbuffer() == content
    assert moved[0] > BLOCK_BYTES


def test_exec_has_three_streams_and_a_status_while_a_port_is_busy(sshd: Sshd) -> None:
    with connected(sshd) as transport, busy_port(transport) as moved:
        for _ in range(3):
            run_with_three_streams(transport, 3_000_000)
    assert moved[0] > BLOCK_BYTES


def test_sftp_goes_on_through_rekeys(
    sshd: Sshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rtunnel.ssh.paramiko")
    content = noise(5_000_000)
    path = tmp_path / "content"
    with (
        connected(sshd, REKEY_BYTES) as transport,
        busy_port(transport) as moved,
        transport.open_sftp_client() as sftp,
    ):
        sftp.putfo(io.BytesIO(content), str(path))
        assert path.read_bytes() == content
        received = io.BytesIO()
        sftp.getfo(str(path), received)
        assert received.getbuffer() == content
    assert moved[0] >= BLOCK_BYTES
    assert rekeys(caplog) >= 10


def test_exec_goes_on_through_rekeys(
    sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rtunnel.ssh.paramiko")
    with connected(sshd, REKEY_BYTES) as transport, busy_port(transport) as moved:
        run_with_three_streams(transport, 2_000_000)
    assert moved[0] >= BLOCK_BYTES
    assert rekeys(caplog) >= 10


def test_a_request_on_a_pumped_channel_is_granted_or_refused(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        connection = Connection.of(transport)
        backend = connection.backend
        assert isinstance(backend, EngineBackend)
        ours, theirs = socket.socketpair()
        with ours:
            relay = connection.open("session", b"", theirs)
            assert isinstance(relay, EngineRelay)
            assert not backend.request(relay, "subsystem", string("not-here"), 30)
            assert backend.request(relay, "exec", string("echo pumped"), 30)
            assert ours.recv(6) == b"pumped"


def test_the_channel_of_an_sftp_client_is_like_any_other(sshd: Sshd) -> None:
    with connected(sshd) as transport, transport.open_sftp_client() as sftp:
        channel = sftp.get_channel()
        assert channel is not None
        assert channel.get_transport() is transport
        assert not channel.closed
        assert not channel.recv_ready()
        channel.settimeout(30)
        assert channel.gettimeout() == 30
        assert channel.getpeername()[1] == sshd.port
        assert sftp.listdir("/")
        channel.close()
        assert channel.closed


def test_a_path_that_is_not_there_is_an_ordinary_error(sshd: Sshd) -> None:
    with (
        connected(sshd) as transport,
        transport.open_sftp_client() as sftp,
        pytest.raises(FileNotFoundError),
    ):
        sftp.stat("/nowhere/at/all")
