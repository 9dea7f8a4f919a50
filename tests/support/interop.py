"""What a reverse tunnel does through an SSH server of another project.

Each test_interop_*.py runs `Interop` against one server, and those of the other
classes here that the server is up to. Where it is not, there is a test of what it
does instead, and of what becomes of the tunnel then.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from rtunnel import Tunnel
from rtunnel.errors import PortInUse
from rtunnel.tunnel import ListenerState
from tests.support.other_servers import OtherServer, connect
from tests.support.ports import free_port, listens
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    echo,
    noise,
    read_all,
    read_end,
    read_exactly,
    say,
    send_and_end,
    visit,
)

MIB = 1024 * 1024


class Interop:
    """What goes with all of them; a subclass says on which backend, and which it is.

    The fixture `server` comes from its module.
    """

    auto_backend: ClassVar[str]
    version: ClassVar[str]

    @pytest.fixture(params=["auto", "python"])
    def backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def tunnel(self, server: OtherServer, backend: str) -> Iterator[Tunnel]:
        with connect(server, backend) as opened:
            expected = self.auto_backend if backend == "auto" else backend
            assert opened.backend == expected, opened.backend_reason
            yield opened

    def test_it_is_the_server_that_it_is_said_to_be(self, tunnel: Tunnel) -> None:
        assert tunnel.transport.remote_version.startswith(self.version)

    # Bytes.

    def test_bytes_arrive_unchanged_in_both_directions_at_once(
        self, tunnel: Tunnel
    ) -> None:
        data = noise(3 * MIB + 123)
        with Target(echo) as target:
            port = tunnel.listen(free_port(), target.spec).port
            with visit(port) as sock, background(sock.sendall, data):
                assert read_exactly(sock, len(data)) == data

    def test_many_visitors_at_once_each_get_their_own_bytes(
        self, tunnel: Tunnel
    ) -> None:
        with Target(echo) as target:
            port = tunnel.listen(free_port(), target.spec).port

            def one(number: int) -> bool:
                data = bytes([number]) * 50_000
                with visit(port) as sock, background(sock.sendall, data):
                    return read_exactly(sock, len(data)) == data

            with ThreadPoolExecutor(16) as pool:
                assert all(pool.map(one, range(32)))

    def test_two_busy_forwards_do_not_mix(self, tunnel: Tunnel) -> None:
        with Target(echo) as first, Target(say(b"second" * 50_000)) as second:
            one = tunnel.listen(free_port(), first.spec).port
            two = tunnel.listen(free_port(), second.spec).port

            def ask_one(number: int) -> bool:
                data = noise(100_000)
                with visit(one) as sock, background(sock.sendall, data):
                    return read_exactly(sock, len(data)) == data

            def ask_two(number: int) -> bool:
                with visit(two) as sock:
                    return read_all(sock) == b"second" * 50_000

            with ThreadPoolExecutor(8) as pool:
                futures = [
                    pool.submit(f, n) for n in range(8) for f in (ask_one, ask_two)
                ]
                assert all(future.result() for future in futures)

    def test_a_rekey_in_mid_transfer_changes_no_byte(self, tunnel: Tunnel) -> None:
        data = noise(2 * MIB)
        with Target(echo) as target:
            port = tunnel.listen(free_port(), target.spec).port
            with visit(port) as sock, background(sock.sendall, data):
                start = read_exactly(sock, 1000)
                with background(tunnel.transport.renegotiate_keys):
                    assert start + read_exactly(sock, len(data) - 1000) == data

    # Ends.

    def test_a_connection_that_has_ended_leaves_nothing_open(
        self, tunnel: Tunnel
    ) -> None:
        with Target(say(b"bye")) as target:
            listener = tunnel.listen(free_port(), target.spec)
            with visit(listener.port) as sock:
                assert read_all(sock) == b"bye"
            wait_until(lambda: listener.stats().connections_open == 0)

    def test_a_dead_target_closes_the_visitor(self, tunnel: Tunnel) -> None:
        listener = tunnel.listen(free_port(), f"127.0.0.1:{free_port()}")
        with visit(listener.port) as sock:
            assert read_end(sock) in (b"", None)
        assert listener.stats().refused == 1

    # Ports.

    def test_a_port_of_another_connection_is_refused_with_that_reason(
        self, server: OtherServer, tunnel: Tunnel
    ) -> None:
        with connect(server, "python") as other:
            port = other.listen(free_port(), echo).port
            with pytest.raises(PortInUse, match=str(port)):
                tunnel.listen(port, echo)

    def test_closing_the_tunnel_releases_its_ports(self, tunnel: Tunnel) -> None:
        ports = [tunnel.listen(free_port(), "127.0.0.1:1").port for _ in range(3)]
        tunnel.close()
        wait_until(lambda: not any(listens(port) for port in ports))

    def test_dial_connects_to_what_the_server_sees(self, tunnel: Tunnel) -> None:
        data = noise(MIB)
        with Target(echo) as target, tunnel.dial(target.spec) as sock:
            sock.settimeout(TIMEOUT_S)
            with background(sock.sendall, data):
                assert read_exactly(sock, len(data)) == data


class HalfClose:
    """One side may end while the other one goes on (RFC 4254, section 5.3)."""

    def test_the_visitor_may_end_first_and_still_read(self, tunnel: Tunnel) -> None:
        def serve(conn: socket.socket) -> None:
            conn.sendall(b"%d bytes" % len(read_all(conn)) + b"." * MIB)

        with Target(serve) as target:
            port = tunnel.listen(free_port(), target.spec).port
            with visit(port) as sock:
                send_and_end(sock, b"x" * MIB)
                assert read_all(sock) == b"%d bytes" % MIB + b"." * MIB

    def test_the_target_may_end_first_and_still_read(self, tunnel: Tunnel) -> None:
        got: list[bytes] = []

        def serve(conn: socket.socket) -> None:
            send_and_end(conn, b"." * MIB)
            got.append(read_all(conn))

        with Target(serve) as target:
            port = tunnel.listen(free_port(), target.spec).port
            with visit(port) as sock:
                assert read_all(sock) == b"." * MIB
                send_and_end(sock, b"x" * MIB)
                wait_until(lambda: got == [b"x" * MIB])


class ChosenPort:
    """The server answers a request for port 0 (RFC 4254, section 7.1)."""

    def test_the_server_may_choose_the_port(self, tunnel: Tunnel) -> None:
        with Target(say(b"one")) as first, Target(say(b"two")) as second:
            one = tunnel.listen(PORT_0, first.spec)
            two = tunnel.listen(PORT_0, second.spec)
            assert one.port != two.port
            assert (ask(one.port), ask(two.port)) == (b"one", b"two")


class Cancel:
    """The server can be told to listen no more (RFC 4254, section 7.1)."""

    def test_closing_one_listener_keeps_the_other_and_releases_its_port(
        self, tunnel: Tunnel
    ) -> None:
        with Target(echo) as target:
            closed = tunnel.listen(free_port(), target.spec)
            kept = tunnel.listen(free_port(), target.spec)
            with visit(kept.port) as sock:
                sock.sendall(b"before")
                assert read_exactly(sock, 6) == b"before"
                closed.close()
                assert closed.state is ListenerState.CLOSED
                wait_until(lambda: not listens(closed.port))
                sock.sendall(b"after")
                assert read_exactly(sock, 5) == b"after"
            again = tunnel.listen(closed.port, target.spec)
            with visit(again.port) as sock:
                sock.sendall(b"again")
                assert read_exactly(sock, 5) == b"again"
