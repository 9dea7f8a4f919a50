"""Equal bulk channels of one connection get equal shares of a narrow link."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import paramiko
import pytest

import rtunnel
from rtunnel.bench.scenario import link
from tests.support.sshd import Sshd
from tests.support.tunnels import PORT_0, TIMEOUT_S, Target, visit

CHANNELS = 4
RATE_BYTES_S = 6_000_000
# Where a share is first looked at: what the buffers on the way take at once is in.
FIRST_BYTES = 1_500_000
# What each gets in between, on the average: far more than one turn of a channel, and
# seconds, so that a thread that is not let run for a moment hardly counts.
SHARE_BYTES = 10_000_000
CHUNK = bytes(65536)


class Counts:
    """What each of the channels has brought."""

    def __init__(self) -> None:
        self.of = [0] * CHANNELS

    def swallow(self, number: int, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                self.of[number] += len(data)

    def await_total(self, count: int) -> list[int]:
        deadline = time.monotonic() + 3 * TIMEOUT_S
        while sum(self.of) < count:
            assert time.monotonic() < deadline, f"only {self.of} bytes came"
            time.sleep(0.005)
        return list(self.of)


def pour(sock: socket.socket, begin: threading.Event) -> None:
    begin.wait(TIMEOUT_S)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(CHUNK)


@contextlib.contextmanager
def narrow_tunnel(sshd: Sshd) -> Iterator[rtunnel.Tunnel]:
    with link(sshd.port, RATE_BYTES_S, 0.01, 65536) as port:
        transport = rtunnel.Transport(("127.0.0.1", port), backend="engine")
        key = paramiko.Ed25519Key.from_private_key_file(str(sshd.user_key))
        transport.connect(username=sshd.user, pkey=key)
        with rtunnel.Tunnel(transport) as tunnel:
            yield tunnel


@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_equal_bulk_channels_share_within_ten_percent(
    sshd: Sshd, direction: str
) -> None:
    counts = Counts()
    begin = threading.Event()
    accepted: list[socket.socket] = []

    def at_target(conn: socket.socket) -> None:
        number = len(accepted)
        accepted.append(conn)
        if direction == "outbound":
            pour(conn, begin)
        else:
            counts.swallow(number, conn)

    def at_visitor(number: int, conn: socket.socket) -> None:
        if direction == "outbound":
            counts.swallow(number, conn)
        else:
            pour(conn, begin)

    with Target(at_target) as target, narrow_tunnel(sshd) as tunnel:
        port = tunnel.listen(PORT_0, to=target.spec, priority="bulk").port
        visitors = [visit(port) for _ in range(CHANNELS)]
        threads = [
            threading.Thread(target=at_visitor, args=each)
            for each in enumerate(visitors)
        ]
        for thread in threads:
            thread.start()
        while target.accepted < CHANNELS:
            time.sleep(0.005)
        begin.set()
        first = counts.await_total(CHANNELS * FIRST_BYTES)
        last = counts.await_total(CHANNELS * (FIRST_BYTES + SHARE_BYTES))
        for visitor in visitors:
            visitor.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(TIMEOUT_S)
        for visitor in visitors:
            visitor.close()
    shares = [b - a for a, b in zip(first, last, strict=True)]
    fair = sum(shares) / CHANNELS
    assert all(abs(share - fair) <= 0.1 * fair for share in shares), shares
