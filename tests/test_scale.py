"""Many channels on one connection, at once and one after the other."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtunnel import Listener
from rtunnel.errors import ConnectionLost
from tests.support.files import open_files
from tests.support.other_servers import connect
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    background,
    digest,
    echo,
    noise,
    read_all,
    read_exactly,
    send_and_end,
    visit,
)

MIB = 1024 * 1024
# How many channels are open at once. The reference in Python is not made for more.
AT_ONCE = {"engine": 500, "pump": 500, "python": 200}
SHORT_CONNECTIONS = 300

each_backend = pytest.mark.parametrize("backend", AT_ONCE)


@pytest.fixture(autouse=True, scope="module")
def room_for_descriptors() -> Iterator[None]:
    """Raise the limit: both ends of a channel and its visitor are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def word(number: int) -> bytes:
    """Return what only one visitor sends."""
    return b"%04d" % number * 1000


@contextlib.contextmanager
def visitors(listener: Listener, count: int) -> Iterator[list[socket.socket]]:
    """Yield that many visitors, all of them connected through to the target."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(visit(listener.port)) for _ in range(count)]


@each_backend
def test_hundreds_of_channels_at_once_each_echo_their_own_bytes(
    sshd: Sshd, backend: str
) -> None:
    count = AT_ONCE[backend]
    with connect(sshd, backend) as tunnel, Target(echo) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        with visitors(listener, count) as socks:
            wait_until(lambda: listener.stats().connections_open == count)
            for number, sock in enumerate(socks):
                sock.sendall(word(number))
            # The last one first: none of them may have to wait for another.
            for number, sock in reversed(list(enumerate(socks))):
                assert read_exactly(sock, 4000) == word(number)
            for sock in socks:
                sock.shutdown(socket.SHUT_WR)
            assert [read_all(sock) for sock in socks] == [b""] * count
        wait_until(lambda: listener.stats().connections_open == 0)
        stats = listener.stats()
        assert (stats.connections_total, stats.errors) == (count, 0)
        assert (stats.bytes_in, stats.bytes_out) == (4000 * count, 4000 * count)


@each_backend
def test_hundreds_of_short_connections_beside_a_transfer_leave_nothing_behind(
    sshd: Sshd, backend: str
) -> None:
    data = noise(4 * MIB)

    def one(number: int) -> bool:
        with visit(listener.port) as sock:
            send_and_end(sock, word(number))
            return read_all(sock) == word(number)

    def transfer() -> str:
        with visit(bulk.port) as sock, background(send_and_end, sock, data):
            return digest(read_all(sock))

    with connect(sshd, backend) as tunnel, Target(echo) as target:
        bulk = tunnel.listen(PORT_0, target.spec)
        listener = tunnel.listen(PORT_0, target.spec)
        assert one(0)  # what is made with the first connection is there to stay
        wait_until(lambda: listener.stats().connections_open == 0)
        gc.collect()
        files, threads = open_files(), threading.active_count()
        with background(transfer) as digests, ThreadPoolExecutor(8) as pool:
            assert all(pool.map(one, range(SHORT_CONNECTIONS)))
        assert digests == [digest(data)]
        assert listener.stats().connections_total == SHORT_CONNECTIONS + 1
        wait_until(lambda: tunnel.stats().connections_open == 0)
        wait_until(lambda: open_files() <= files)
        wait_until(lambda: threading.active_count() <= threads)


@each_backend
def test_a_server_that_goes_away_ends_hundreds_of_channels(
    tmp_path: Path, backend: str
) -> None:
    count = AT_ONCE[backend]
    ended = threading.Semaphore(0)

    def serve(conn: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            echo(conn)
        ended.release()

    with (
        Sshd(tmp_path) as sshd,
        Target(serve) as target,
        connect(sshd, backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, target.spec)
        with visitors(listener, count) as socks:
            for sock in socks:
                sock.sendall(b"x")
            assert [read_exactly(sock, 1) for sock in socks] == [b"x"] * count
            sshd.kill_sessions()
            with pytest.raises(ConnectionLost):
                tunnel.wait(TIMEOUT_S)
            assert all(ended.acquire(timeout=TIMEOUT_S) for _ in socks)
        assert listener.wait_closed(TIMEOUT_S)
        assert listener.stats().connections_open == 0
