"""Several clients that serve one port of the gateway together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.errors import ConfigError, ForwardingDenied
from rtunnel.gateway.settings import Balance, Group, Rights
from rtunnel.status.model import ListenerRow
from tests.support.gateways import GatewayServer, Ssh
from tests.support.other_servers import connect
from tests.support.ports import free_port, listens
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    Target,
    ask,
    background,
    echo,
    read_exactly,
    say,
    visit,
)

FORWARDED = "remote forward success"


@contextlib.contextmanager
def serving(server: GatewayServer, place: str, *texts: bytes) -> Iterator[list[Ssh]]:
    """Run a client for each text, all on one place."""
    with contextlib.ExitStack() as stack:
        clients = []
        for text in texts:
            ssh = stack.enter_context(server.serving(say(text), place, "-v"))
            wait_until(lambda ssh=ssh: FORWARDED in ssh.said)
            clients.append(ssh)
        yield clients


def rows(server: GatewayServer) -> list[ListenerRow]:
    connections = server.gateway.status().connections
    return [row for connection in connections for row in connection.listeners]


def grouped(folder: Path, group: Group, **options: object) -> GatewayServer:
    return GatewayServer(folder, groups=[group], **options)


def test_visitors_go_to_each_client_in_turn(tmp_path: Path) -> None:
    port = free_port()
    with (
        grouped(tmp_path, Group(port)) as server,
        serving(server, str(port), b"a", b"b", b"c"),
    ):
        answers = [ask(port) for _ in range(9)]
        assert Counter(answers) == {b"a": 3, b"b": 3, b"c": 3}
        assert len(set(answers[:3])) == 3


@pytest.mark.parametrize("balance", list(Balance))
def test_who_has_the_fewest_visitors_gets_the_next_if_that_is_wanted(
    tmp_path: Path, balance: Balance
) -> None:
    port = free_port()

    def stay(conn: socket.socket) -> None:
        conn.sendall(b"stays")
        conn.recv(1)

    with (
        grouped(tmp_path, Group(port, balance)) as server,
        server.serving(stay, str(port), "-v") as first,
        contextlib.ExitStack() as visits,
    ):
        wait_until(lambda: FORWARDED in first.said)
        for _ in range(4):
            sock = visits.enter_context(visit(port))
            assert read_exactly(sock, 5) == b"stays"
        with serving(server, str(port), b"new"):
            answers = []
            for _ in range(4):
                sock = visits.enter_context(visit(port))
                answers.append(read_exactly(sock, 3))
    expected = 4 if balance is Balance.LEAST_CONNECTIONS else 2
    assert answers.count(b"new") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_member_that_dies_is_taken_out_and_the_port_stays(
    tmp_path: Path, number: int
) -> None:
    port = free_port()
    with (
        grouped(tmp_path, Group(port)) as server,
        serving(server, str(port), b"a", b"b") as clients,
    ):
        os.kill(clients[0].process.pid, number)
        clients[0].process.wait(20.0)
        # No visitor is lost, not even one that comes before the end is seen.
        assert [ask(port) for _ in range(6)] == [b"b"] * 6
        clients[1].kill()
        wait_until(lambda: not listens(port))


def test_a_visitor_whose_member_has_a_dead_target_goes_to_the_next(
    tmp_path: Path,
) -> None:
    port = free_port()
    with (
        grouped(tmp_path, Group(port)) as server,
        server.forward(free_port(), str(port), "-v") as dead,
    ):
        wait_until(lambda: FORWARDED in dead.said)
        with serving(server, str(port), b"works"):
            assert [ask(port) for _ in range(4)] == [b"works"] * 4
            wait_until(
                lambda: sorted(r.connections_total for r in rows(server)) == [0, 4]
            )
            assert sum(row.errors for row in rows(server)) >= 1


def test_a_member_that_answers_nobody_is_asked_last_and_its_visitor_is_not_lost(
    tmp_path: Path,
) -> None:
    port = free_port()
    with (
        grouped(tmp_path, Group(port)) as server,
        serving(server, str(port), b"slow", b"works") as clients,
    ):
        os.kill(clients[0].process.pid, signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            first = [stack.enter_context(visit(port)) for _ in range(2)]
            members = [
                listener
                for entrance in server.gateway._listeners._by_place.values()
                for listener in entrance.members
            ]
            wait_until(lambda: any(m.traffic.is_slow() for m in members))
            assert [ask(port) for _ in range(6)] == [b"works"] * 6
            # It is given up, and who waited for it goes to the other.
            clients[0].kill()
            assert [read_exactly(sock, 5) for sock in first] == [b"works"] * 2


def test_bytes_are_the_same_with_a_second_member(tmp_path: Path) -> None:
    port, data = free_port(), os.urandom(1_000_000)
    with (
        grouped(tmp_path, Group(port)) as server,
        Target(echo) as target,
        connect(server) as one,
        connect(server) as two,
    ):
        for tunnel in (one, two):
            tunnel.listen(port, target.spec)
        for _ in range(4):
            with visit(port) as sock, background(sock.sendall, data):
                assert read_exactly(sock, len(data)) == data


def test_when_nobody_takes_a_visitor_it_is_closed(tmp_path: Path) -> None:
    port = free_port()
    with (
        grouped(tmp_path, Group(port)) as server,
        server.forward(free_port(), str(port), "-v") as dead,
    ):
        wait_until(lambda: FORWARDED in dead.said)
        assert ask(port) == b""


def test_a_socket_path_may_have_a_group(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    rights = Rights(socket_folder=tmp_path)
    with (
        grouped(tmp_path, Group("app.sock"), rights=rights) as server,
        serving(server, str(path), b"a", b"b"),
    ):
        answers = set()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                answers.add(read_exactly(sock, 1))
        assert answers == {b"a", b"b"}


def test_one_connection_joins_once_and_others_may_not_join_at_all(
    tmp_path: Path,
) -> None:
    port, other = free_port(), free_port()
    groups = [Group(port), Group(other, users=("somebody",))]
    with (
        GatewayServer(tmp_path, groups=groups) as server,
        connect(server) as tunnel,
    ):
        tunnel.listen(port, say(b"once"))
        with server.forward(1, str(other), "-v") as ssh:
            assert ssh.status() == 255
            assert "disabled for users outside of its group" in ssh.said
        with pytest.raises(ForwardingDenied, match="disabled for users outside"):
            tunnel.listen(other, say(b"never"))


@pytest.mark.parametrize("place", [0, 70000, "", "..", "a/b"])
def test_a_group_has_a_port_or_the_name_of_a_socket(place: int | str) -> None:
    with pytest.raises(ConfigError, match="a group"):
        Group(place)
