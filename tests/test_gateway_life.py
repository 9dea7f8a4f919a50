"""The gateway: what its users are told, its limits, and its end."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

import rtunnel
from rtunnel.errors import (
    ConfigError,
    ConnectionLost,
    ForwardingDenied,
    PortInUse,
    RequestRefused,
)
from rtunnel.gateway import Gateway
from rtunnel.gateway import session as session_module
from rtunnel.gateway.settings import Limits
from rtunnel.ssh.connection import Connection
from rtunnel.wire import string, u32
from tests.support.files import open_files
from tests.support.gateways import GatewayServer, Guest
from tests.support.other_servers import connect
from tests.support.ports import free_port, listens
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    Target,
    ask,
    echo,
    read_all,
    read_exactly,
    say,
    visit,
)

# What rtunnel's users are told.


def test_a_port_of_somebody_else_is_said_to_be_in_use(tmp_path: Path) -> None:
    one, two = Guest(tmp_path, "one"), Guest(tmp_path, "two")
    with (
        Gateway(authorized_keys=[one.public, two.public]) as gateway,
        connect(one.meet(gateway)) as first,
        connect(two.meet(gateway)) as second,
    ):
        port = first.listen(0, echo).port
        with pytest.raises(PortInUse, match=str(port)):
            second.listen(port, echo)


def test_a_port_that_the_key_may_not_have_is_said_to_be_forbidden(
    tmp_path: Path,
) -> None:
    with (
        GatewayServer(tmp_path, 'permitlisten="8080"') as server,
        connect(server) as tunnel,
        pytest.raises(ForwardingDenied, match="disabled for this key by permitlisten"),
    ):
        tunnel.listen(8081, echo)


# What goes over the wire.


def listen_request(port: int) -> bytes:
    return string("localhost") + u32(port)


def test_a_reply_names_the_port_only_if_the_choice_was_the_gateways(
    tmp_path: Path,
) -> None:
    port = free_port()
    with GatewayServer(tmp_path) as server, connect(server) as tunnel:
        ask_for = tunnel.connection.request
        assert ask_for("tcpip-forward", listen_request(port)) == b""
        chosen = ask_for("tcpip-forward", listen_request(0))
        assert listens(int.from_bytes(chosen))
        assert ask_for("cancel-tcpip-forward", listen_request(port)) == b""
        assert not listens(port)


def test_replies_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    with GatewayServer(tmp_path) as server, connect(server) as tunnel:
        answers: list[tuple[int, object]] = []
        for number in range(60):
            kind = ("tcpip-forward", "unknown@example.com", "cancel-tcpip-forward")[
                number % 3
            ]

            def answered(answer: object, number: int = number) -> None:
                answers.append((number, type(answer).__name__))

            tunnel.connection._requests.submit(kind, listen_request(0), answered)
        wait_until(lambda: len(answers) == 60)
        names = ["Granted", "Refused", "Refused"]
        assert answers == [(n, names[n % 3]) for n in range(60)]


@pytest.mark.parametrize(
    "kind", ["cancel-tcpip-forward", "unknown@example.com", "tcpip-forward"]
)
def test_what_cannot_be_granted_is_refused(tmp_path: Path, kind: str) -> None:
    with (
        GatewayServer(tmp_path) as server,
        connect(server) as tunnel,
        pytest.raises(RequestRefused),
    ):
        tunnel.connection.request(kind, string("x" * 300) + u32(free_port()))


def test_a_request_that_is_cut_short_ends_its_connection_only(tmp_path: Path) -> None:
    with GatewayServer(tmp_path) as server, connect(server) as other:
        with (
            connect(server) as tunnel,
            pytest.raises(ConnectionLost, match="cut short"),
        ):
            tunnel.connection.request("tcpip-forward", b"\0\0")
        with Target(say(b"hello")) as target:
            assert ask(other.listen(0, target.spec).port) == b"hello"


def test_a_flood_of_requests_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "WAITING_REQUESTS_MAX", 4)
    with GatewayServer(tmp_path) as server, connect(server) as tunnel:
        held, going_on = threading.Event(), threading.Event()
        server.gateway._loop.call(lambda: (held.set(), going_on.wait(10.0)))
        assert held.wait(10.0)
        for _ in range(5):
            tunnel.connection.notify("keepalive@openssh.com")
        with pytest.raises(ConnectionLost, match="too many requests"):
            tunnel.wait(10.0)
        going_on.set()


# Limits for those who have not logged in.


def test_a_stranger_who_does_not_log_in_is_cut_off(tmp_path: Path) -> None:
    limits = Limits(login_grace_s=4.0)
    with GatewayServer(tmp_path, limits=limits) as server, connect(server) as tunnel:
        with visit(server.port) as stranger:
            assert read_all(stranger).startswith(b"SSH-2.0-")
        assert not tunnel.wait(0.0)


def test_too_many_strangers_are_refused_until_one_has_gone(tmp_path: Path) -> None:
    limits = Limits(unauthenticated_max=2)
    with (
        GatewayServer(tmp_path, limits=limits) as server,
        visit(server.port) as first,
        visit(server.port) as second,
    ):
        for sock in (first, second):
            assert sock.recv(4) == b"SSH-"
        with visit(server.port) as third:
            assert read_all(third) == b"Too many connections\r\n"
        first.close()
        wait_until(lambda: len(server.gateway._sessions) == 1)
        with connect(server):
            # The client may know that it is let in before the gateway has noted it.
            wait_until(lambda: server.gateway._guests == 1)
            with connect(server):
                assert len(server.gateway._sessions) == 3


def test_a_stranger_asks_for_nothing_before_the_login(tmp_path: Path) -> None:
    with GatewayServer(tmp_path) as server:
        transport = rtunnel.Transport(("127.0.0.1", server.port))
        transport.start_client()
        connection = Connection.of(transport)
        with pytest.raises(RequestRefused):
            connection.request("tcpip-forward", listen_request(0))
        transport.close()
        connection.join(10.0)


# Keys and settings.


def test_the_host_key_is_made_once_for_the_owner_only(tmp_path: Path) -> None:
    guest, path = Guest(tmp_path), tmp_path / "state" / "host_key"
    lines = []
    for _ in range(2):
        with Gateway(authorized_keys=[guest.public], host_key=path) as gateway:
            lines.append(gateway.known_hosts_line("gate").split(" ", 1))
            guest.meet(gateway)
            connect(guest).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["host_key"]
    assert lines[0][1] == lines[1][1]
    assert lines[0][0].startswith("[gate]:")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"authorized_keys": []}, "would serve nobody"),
        ({"authorized_keys": [Path("missing")]}, "cannot read .*missing"),
        ({"host_key": Path("garbage")}, "host key garbage"),
        ({"allow_ports": range(5)}, "no range of ports"),
        ({"allow_ports": range(5, 5)}, "no range of ports"),
        ({"allow_socket_dir": Path("missing")}, "does not exist: missing"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage").write_text("garbage")
    Path("garbage").chmod(0o600)
    options: dict[str, object] = {"authorized_keys": ["# nobody"], **settings}
    with pytest.raises(ConfigError, match=message):
        Gateway(**options)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_named_when_the_gateway_starts(tmp_path: Path) -> None:
    with GatewayServer(tmp_path) as server:
        second = Gateway(("127.0.0.1", server.port), authorized_keys=["# nobody"])
        with pytest.raises(ConfigError, match=f"port {server.port}: .* in use"):
            second.start()
        second.close()


def test_a_file_of_keys_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    one, two = Guest(tmp_path, "one"), Guest(tmp_path, "two")
    keys = tmp_path / "authorized_keys"
    keys.write_text(one.public)
    with Gateway(authorized_keys=[keys]) as gateway:
        connect(one.meet(gateway)).close()
        keys.write_text(f"# now the other\n{two.public}")
        connect(two.meet(gateway)).close()
        with pytest.raises(rtunnel.errors.AuthenticationFailed):
            connect(one)


# The end.


def use_to_the_end(server: GatewayServer, target: Target) -> None:
    """Close a gateway in full use: visitors connected, a stranger at the door."""
    tunnels = [connect(server) for _ in range(3)]
    ports = [tunnel.listen(0, target.spec).port for tunnel in tunnels]
    socks = [visit(port) for port in ports]
    for sock in socks:
        sock.sendall(b"1")
        assert read_exactly(sock, 1) == b"1"
    with visit(server.port):
        server.gateway.close()
    assert not any(listens(port) for port in [*ports, server.port])
    for sock in socks:
        sock.close()
    for tunnel in tunnels:
        with pytest.raises(ConnectionLost, match="closed by the application"):
            tunnel.wait(10.0)
        tunnel.close()


def test_closing_the_gateway_ends_everything_that_it_has_begun(
    tmp_path: Path,
) -> None:
    gc.collect()
    threads, before = set(threading.enumerate()), open_files()
    with GatewayServer(tmp_path) as server, Target(echo) as target:
        use_to_the_end(server, target)
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert open_files() <= before


def test_clients_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    def come_and_go() -> None:
        with connect(server) as tunnel:
            ask(tunnel.listen(0, target.spec).port)

    with GatewayServer(tmp_path) as server, Target(say(b"bye")) as target:
        come_and_go()
        gc.collect()
        wait_until(lambda: not server.gateway._sessions)
        before = open_files()
        for _ in range(10):
            come_and_go()
        wait_until(lambda: not server.gateway._sessions)
        gc.collect()
        assert open_files() <= before
