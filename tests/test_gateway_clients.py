"""The gateway, used by rtunnel and asyncssh, with each backend at each end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import pytest

from rtunnel import Tunnel
from rtunnel.errors import ChannelOpenError
from tests.support.gateways import GatewayServer
from tests.support.interop import Cancel, ChosenPort, HalfClose, Interop
from tests.support.link import Link
from tests.support.other_servers import OtherServer, connect
from tests.support.ports import free_port
from tests.support.tunnels import (
    Target,
    ask,
    background,
    echo,
    noise,
    read_all,
    read_exactly,
    say,
    visit,
)

MIB = 1024 * 1024
SERVER_BACKENDS = ("engine", "pump", "python")


@pytest.fixture(scope="module", params=SERVER_BACKENDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayServer]:
    """A gateway on each backend; each client's connection reads the variable."""
    folder = tmp_path_factory.mktemp("gateway")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RTUNNEL_BACKEND", request.param)
        with GatewayServer(folder, allow_socket_dir=folder) as running:
            yield running


class Behind:
    """A server, as it is reached through a link."""

    def __init__(self, server: GatewayServer, link: Link) -> None:
        self.user, self.user_key, self.port = server.user, server.user_key, link.port
        self.known_hosts = server.user_key.with_name("known_hosts_of_the_link")
        line = server.known_hosts.read_text()
        self.known_hosts.write_text(line.replace(str(server.port), str(link.port)))


class TestGateway(Interop, HalfClose, ChosenPort, Cancel):
    auto_backend = "engine"
    version = "SSH-2.0-paramiko"

    @pytest.fixture(params=["engine", "pump", "python"])
    def backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_a_port_of_another_connection_is_refused_with_that_reason(
        self, server: OtherServer, tunnel: Tunnel
    ) -> None:
        # Instead: the connection has the same key, so that the port moves.
        with connect(server, "python") as other:
            port = other.listen(free_port(), say(b"other")).port
            assert ask(port) == b"other"
            assert tunnel.listen(port, say(b"tunnel")).port == port
            assert ask(port) == b"tunnel"
        assert ask(port) == b"tunnel"

    def test_a_client_that_is_back_has_its_port_at_once(
        self, server: GatewayServer, backend: str
    ) -> None:
        with Link(server.port) as link, Target(say(b"back")) as target:
            behind = Behind(server, link)
            old = connect(behind, backend)
            port = old.listen(0, say(b"old")).port
            assert ask(port) == b"old"
            link.freeze()
            with connect(server, backend) as new:
                assert new.listen(port, target.spec).port == port
                assert ask(port) == b"back"
            link.cut()
            old.close()

    def test_dial_connects_to_what_the_server_sees(self, tunnel: Tunnel) -> None:
        # Instead: the gateway opens no connections.
        with Target(echo) as target, pytest.raises(ChannelOpenError, match="opens no"):
            tunnel.dial(target.spec)

    def test_fifty_visitors_at_once_each_get_their_own_bytes(
        self, tunnel: Tunnel
    ) -> None:
        def one(number: int) -> bool:
            data = bytes([number]) * 40_000
            with visit(port) as sock, background(sock.sendall, data):
                return read_exactly(sock, len(data)) == data

        with Target(echo) as target, ThreadPoolExecutor(50) as pool:
            port = tunnel.listen(0, target.spec).port
            assert all(pool.map(one, range(50)))

    def test_a_socket_path_is_served(
        self, server: GatewayServer, tunnel: Tunnel
    ) -> None:
        path = str(server.user_key.parent / "tunnel.sock")
        with Target(say(b"through a path")) as target:
            listener = tunnel.listen(path, target.spec)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                assert read_all(sock) == b"through a path"
            listener.close()
            assert not Path(path).exists()


# asyncssh.


def test_asyncssh_can_forward_ports_and_socket_paths(server: GatewayServer) -> None:
    data = noise(MIB)
    path = str(server.user_key.parent / "asyncssh.sock")

    async def use(target: Target) -> None:
        async with asyncssh.connect(
            "127.0.0.1",
            server.port,
            username=server.user,
            client_keys=[str(server.user_key)],
            known_hosts=str(server.known_hosts),
            config=None,
        ) as connection:
            forward = await connection.forward_remote_port(
                "", 0, "127.0.0.1", target.port
            )
            await connection.forward_remote_path_to_port(path, "127.0.0.1", target.port)
            assert await asyncio.to_thread(exchange, forward.get_port()) == data
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                sock.sendall(b"1")
                assert await asyncio.to_thread(read_exactly, sock, 1) == b"1"
            forward.close()
            await forward.wait_closed()

    def exchange(port: int) -> bytes:
        with visit(port) as sock, background(sock.sendall, data):
            return read_exactly(sock, len(data))

    with Target(echo) as target:
        asyncio.run(use(target))
