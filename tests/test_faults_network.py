"""What becomes of streams when the network fails: docs/faults.md, a test a row."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtunnel.errors import ConnectionLost
from tests.support.gateways import GatewayServer
from tests.support.link import Link
from tests.support.other_servers import connect
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    BACKENDS,
    PORT_0,
    TIMEOUT_S,
    Target,
    echo,
    noise,
    read_end,
    read_exactly,
    visit,
)

LATE_SHARE, LATE_S = 0.01, 2.0
# About 300 segments each way: three of them are late.
LATE_BYTES = 400_000


def echo_over_a_late_link(sshd: Sshd, backend: str, seed: int) -> int:
    """Echo through a link on which segments are late; return how many were."""
    chance, late = random.Random(seed), []
    lock = threading.Lock()

    def late_s() -> float:
        with lock:
            if chance.random() >= LATE_SHARE:
                return 0.0
            late.append(LATE_S)
            return LATE_S

    data = noise(LATE_BYTES)
    with (
        Link(sshd.port) as link,
        connect(sshd.login.by(link.port), backend, keepalive_interval_s=2) as tunnel,
        Target(echo) as target,
    ):
        listener = tunnel.listen(PORT_0, to=target.spec)
        link.delay(late_s)
        with visit(listener.port) as visitor:
            visitor.settimeout(100)
            sender = threading.Thread(target=visitor.sendall, args=(data,))
            sender.start()
            assert read_exactly(visitor, LATE_BYTES) == data
            sender.join()
        assert tunnel.transport.is_active()
    return len(late)


def test_segments_that_are_two_seconds_late_change_no_byte_and_end_nothing(
    sshd: Sshd,
) -> None:
    # All backends at once, since they only wait.
    with ThreadPoolExecutor() as pool:
        late = list(pool.map(lambda b: echo_over_a_late_link(sshd, b, 5), BACKENDS))
    assert min(late) >= 2


def greet_and_wait(ended: list[bytes | None]) -> Callable[[socket.socket], None]:
    """Return a target that notes how its connection ends: None for a reset."""

    def serve(conn: socket.socket) -> None:
        conn.sendall(b"hello")
        ended.append(read_end(conn))

    return serve


@pytest.mark.parametrize("fault", [Link.cut, Link.freeze])
def test_a_target_is_reset_when_the_connection_is_cut_or_swallowed(
    sshd: Sshd, backend: str, fault: Callable[[Link], None]
) -> None:
    ended: list[bytes | None] = []
    with (
        Link(sshd.port) as link,
        connect(
            sshd.login.by(link.port),
            backend,
            keepalive_interval_s=0.5,
            keepalive_count_max=2,
        ) as tunnel,
        Target(greet_and_wait(ended)) as target,
    ):
        listener = tunnel.listen(PORT_0, to=target.spec)
        with visit(listener.port) as visitor:
            assert read_exactly(visitor, 5) == b"hello"
            fault(link)
            with pytest.raises(ConnectionLost):
                tunnel.wait(TIMEOUT_S)
            # A reset, since bytes may be lost: an end of stream would be a lie.
            wait_until(lambda: ended == [None])


def test_a_visitor_of_the_gateway_is_reset_when_its_client_is_cut_off(
    tmp_path: Path, backend: str
) -> None:
    ended: list[bytes | None] = []
    with GatewayServer(tmp_path) as server, Link(server.port) as link:
        server.known_hosts.write_text(
            server.known_hosts.read_text().replace(str(server.port), str(link.port))
        )
        server.port = link.port
        with (
            connect(server, backend) as tunnel,
            Target(greet_and_wait(ended)) as target,
        ):
            with visit(tunnel.listen(PORT_0, to=target.spec).port) as visitor:
                assert read_exactly(visitor, 5) == b"hello"
                link.cut()
                assert read_end(visitor) is None
            wait_until(lambda: ended == [None])
