"""Readiness that is proven: visits of listeners through their server."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel import Listener, Supervisor, Tunnel
from rtunnel.errors import ConnectionLost, RequestTimeout
from rtunnel.gateway.settings import Rights
from rtunnel.status import readiness
from rtunnel.status.readiness import SelfTests
from rtunnel.tunnel.selftest import Outcome, self_test
from tests.support.command import Command
from tests.support.gateways import GatewayServer
from tests.support.other_servers import connect
from tests.support.ports import free_port, listens
from tests.support.sshd import Sshd, wait_until
from tests.support.statuses import get
from tests.support.supervising import TomlFile, server_table, wait_ready
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    open_tunnel,
    say,
)

# For what takes milliseconds on a machine that is not busy.
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "TEST_TIMEOUT_S", WAIT_S)


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(say(b"hello")) as serving:
        yield serving


def free_the_port(listener: Listener) -> int:
    """Have the server listen no more, while this side believes it does."""
    kind, payload = listener.forward.cancel_request()
    listener.tunnel.connection.request(kind, payload)
    return listener.port


def test_a_listener_is_proven_and_nobody_notices(
    tunnel: Tunnel, target: Target
) -> None:
    listener = tunnel.listen(PORT_0, to=target.spec)
    assert self_test(listener, WAIT_S) is Outcome.LISTENING
    stats = listener.stats()
    assert (stats.connections_total, stats.refused, stats.errors) == (0, 0, 0)
    assert target.accepted == 0
    assert ask(listener.port) == b"hello"


def test_a_socket_path_is_proven_too(
    tunnel: Tunnel, target: Target, tmp_path: Path
) -> None:
    listener = tunnel.listen(str(tmp_path / "socket"), to=target.spec)
    assert self_test(listener, WAIT_S) is Outcome.LISTENING
    assert target.accepted == 0


def test_every_address_is_proven(backend: str, tmp_path: Path) -> None:
    with (
        Sshd(tmp_path, "AddressFamily any") as server,
        open_tunnel(server, backend) as tunnel,
    ):
        for address in ("localhost", "", "0.0.0.0", "::", "::1"):
            listener = tunnel.listen((address, 0), to="127.0.0.1:1")
            assert self_test(listener, WAIT_S) is Outcome.LISTENING


def test_a_port_that_the_server_does_not_hold_is_not_ready(
    tunnel: Tunnel, target: Target
) -> None:
    listener = tunnel.listen(PORT_0, to=target.spec)
    free_the_port(listener)
    assert self_test(listener, WAIT_S) is Outcome.SILENT


def test_a_port_that_somebody_else_holds_is_not_ready(
    tunnel: Tunnel, target: Target
) -> None:
    listener = tunnel.listen(PORT_0, to=target.spec)
    port = free_the_port(listener)
    with socket.create_server(("127.0.0.1", port)):
        assert self_test(listener, WAIT_S) is Outcome.SILENT


def test_a_server_that_makes_no_connections_is_believed(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Sshd(tmp_path, "AllowTcpForwarding remote") as sshd,
        open_tunnel(sshd, backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, to="127.0.0.1:1")
        assert self_test(listener, WAIT_S) is Outcome.NOT_ALLOWED
        check = SelfTests(lambda: [("home", tunnel)])
        assert check() == []
        monkeypatch.setattr(readiness, "KEPT_S", 0.0)
        monkeypatch.setattr(readiness, "self_test", pytest.fail)
        assert check() == []  # not asked again


def test_visitors_are_served_while_tests_run(tunnel: Tunnel, target: Target) -> None:
    listener = tunnel.listen(PORT_0, to=target.spec)

    def visit_often() -> list[bytes]:
        return [ask(listener.port) for _ in range(100)]

    with background(visit_often) as answers:
        while not answers:
            assert self_test(listener, WAIT_S) is Outcome.LISTENING
    assert answers == [[b"hello"] * 100]
    assert listener.stats().connections_total >= 100


def test_a_server_that_does_not_answer_is_not_ready(
    tunnel: Tunnel, sshd: Sshd, target: Target
) -> None:
    listener = tunnel.listen(PORT_0, to=target.spec)
    session = int(ask_for_parent(tunnel))
    os.kill(session, signal.SIGSTOP)
    try:
        with pytest.raises(RequestTimeout):
            self_test(listener, timeout_s=0.5)
    finally:
        os.kill(session, signal.SIGCONT)
    assert ask(listener.port) == b"hello"


def test_of_a_server_that_does_not_answer_only_some_listeners_are_waited_for(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []

    def count(listener: Listener, timeout_s: float) -> Outcome:
        tested.append(listener)
        return self_test(listener, timeout_s)

    monkeypatch.setattr(readiness, "self_test", count)
    monkeypatch.setattr(readiness, "TEST_TIMEOUT_S", 1.0)
    listeners = [tunnel.listen(PORT_0, to="127.0.0.1:1") for _ in range(30)]
    session = int(ask_for_parent(tunnel))
    os.kill(session, signal.SIGSTOP)
    try:
        lines = SelfTests(lambda: [("home", tunnel)])()
    finally:
        os.kill(session, signal.SIGCONT)
    assert len(lines) == len(listeners)
    assert len(tested) <= readiness.THREADS


def ask_for_parent(tunnel: Tunnel) -> bytes:
    """Return the number of the server's process for this connection."""
    channel = tunnel.transport.open_session(timeout=TIMEOUT_S)
    with channel:
        channel.exec_command("echo $PPID")
        answer: bytes = channel.makefile("rb").read()
        return answer


def test_a_lost_connection_is_not_ready(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, to="127.0.0.1:1")
    tunnel.close()
    with pytest.raises(ConnectionLost):
        self_test(listener, WAIT_S)


def test_the_check_names_the_listeners_that_do_not_answer(tunnel: Tunnel) -> None:
    check = SelfTests(lambda: [("home", tunnel)])
    tunnel.listen(PORT_0, to="127.0.0.1:1", name="good")
    bad = tunnel.listen(PORT_0, to="127.0.0.1:1", name="bad")
    paused = tunnel.listen(PORT_0, to="127.0.0.1:1", name="paused")
    paused.pause()
    free_the_port(bad)
    (line,) = check()
    assert line.startswith("home bad: ")
    bad.close()
    assert check() == []


def test_an_answer_is_kept_for_a_while(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = SelfTests(lambda: [("home", tunnel)])
    listener = tunnel.listen(PORT_0, to="127.0.0.1:1")
    assert check() == []
    free_the_port(listener)
    assert check() == []
    monkeypatch.setattr(readiness, "KEPT_S", 0.0)
    assert len(check()) == 1


def test_of_many_listeners_each_gets_its_turn(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "KEPT_S", 0.0)
    monkeypatch.setattr(readiness, "LISTENERS_PER_CHECK", 2)
    check = SelfTests(lambda: [("home", tunnel)])
    listeners = [tunnel.listen(PORT_0, to="127.0.0.1:1") for _ in range(5)]
    free_the_port(listeners[4])
    assert [len(check()) for _ in range(3)][2] == 1


def test_a_visitor_who_comes_while_the_server_refuses_the_test_is_served(
    backend: str, tmp_path: Path, target: Target
) -> None:
    with (
        Sshd(tmp_path, "AllowTcpForwarding remote") as sshd,
        open_tunnel(sshd, backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, to=target.spec)
        with background(lambda: [ask(listener.port) for _ in range(50)]) as answers:
            while not answers:
                assert self_test(listener, WAIT_S) is Outcome.NOT_ALLOWED
    assert answers == [[b"hello"] * 50]


def test_the_tunnels_of_a_supervisor_are_tested(
    sshd: Sshd, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "KEPT_S", 0.0)
    tunnel = {"listen": free_port(), "to": target.spec}
    file = TomlFile(tmp_path / "tunnels.toml")
    file.write(a=server_table(sshd, tunnels={"web": tunnel}))
    with Supervisor(file.path) as supervisor:
        wait_ready(supervisor)
        check = SelfTests(supervisor.tunnels)
        assert check() == []
        ((_, live),) = supervisor.tunnels()
        free_the_port(live.listeners[0])
        (line,) = check()
        assert line.startswith("a ")
    assert supervisor.tunnels() == []
    assert check() == []


def test_run_is_ready_when_its_tunnels_are_proven(
    sshd: Sshd, target: Target, tmp_path: Path
) -> None:
    tunnel = {"listen": free_port(), "to": target.spec}
    file = TomlFile(tmp_path / "tunnels.toml")
    path = file.write(a=server_table(sshd, tunnels={"web": tunnel}))
    served = free_port()
    with Command("run", str(path), "--status", str(served)) as command:

        def is_ready() -> bool:
            assert command.process.poll() is None, command.errors()
            return listens(served) and get(served, "/readyz").status == 200

        wait_until(is_ready, WAIT_S)
    assert target.accepted == 0


@pytest.mark.parametrize(
    ("permits", "outcome"),
    [((), Outcome.NOT_ALLOWED), (("127.0.0.1:*",), Outcome.LISTENING)],
)
def test_a_gateway_proves_it_where_it_connects_for_its_users(
    tmp_path: Path, target: Target, permits: tuple[str, ...], outcome: Outcome
) -> None:
    rights = Rights(permit_open=permits)
    with GatewayServer(tmp_path, rights=rights) as server, connect(server) as tunnel:
        listener = tunnel.listen(PORT_0, to=target.spec)
        assert self_test(listener, WAIT_S) is outcome
        assert target.accepted == 0
        assert ask(listener.port) == b"hello"
