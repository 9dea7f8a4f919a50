"""Reverse tunnels through a Twisted Conch server.

It has no AES-GCM, so the pump runs and not the engine.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from rtunnel import Tunnel
from rtunnel.errors import ConnectionLost
from tests.support.interop import MIB, Cancel, Interop
from tests.support.other_servers import ConchServer
from tests.support.ports import free_port
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    Target,
    echo,
    read_all,
    read_end,
    send_and_end,
    visit,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConchServer]:
    with ConchServer(tmp_path_factory.mktemp("conch")) as running:
        yield running


class TestConch(Interop, Cancel):
    auto_backend = "pump"
    version = "SSH-2.0-Twisted_"

    # Conch has no half-close: where one side has ended it closes the other one, too
    # (conch/ssh/forwarding.py: connectionLost and eofReceived both close). What was
    # sent before that still has to arrive.

    def test_all_of_what_the_visitor_sent_arrives_before_the_end(
        self, tunnel: Tunnel
    ) -> None:
        got: list[bytes | None] = []

        def serve(conn: socket.socket) -> None:
            got.append(read_end(conn))

        with Target(serve) as target:
            listener = tunnel.listen(free_port(), target.spec)
            with visit(listener.port) as sock:
                send_and_end(sock, b"x" * MIB)
                wait_until(lambda: got == [b"x" * MIB])
            wait_until(lambda: listener.stats().connections_open == 0)

    def test_all_of_what_the_target_sent_arrives_before_the_end(
        self, tunnel: Tunnel
    ) -> None:
        ended: list[bytes | None] = []

        def serve(conn: socket.socket) -> None:
            send_and_end(conn, b"." * MIB)
            ended.append(read_end(conn))

        with Target(serve) as target:
            listener = tunnel.listen(free_port(), target.spec)
            with visit(listener.port) as sock:
                assert read_all(sock) == b"." * MIB
            wait_until(lambda: ended in ([b""], [None]))
            wait_until(lambda: listener.stats().connections_open == 0)

    # Conch fails on port 0 (conch/unix.py takes the address of its port for a tuple),
    # and an exception in it is the end of the connection.
    def test_a_request_for_port_0_ends_the_connection_and_says_so(
        self, tunnel: Tunnel
    ) -> None:
        listener = tunnel.listen(free_port(), echo)
        with pytest.raises(ConnectionLost, match="server closed the connection"):
            tunnel.listen(0, echo)
        with pytest.raises(ConnectionLost):
            tunnel.wait(10)
        assert listener.wait_closed(10)
        assert tunnel.listeners == []
