"""Limits of the gateway, penalties, dead clients, and who a PROXY header says it is."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rtunnel
from rtunnel import pump
from rtunnel.errors import ConfigError, ConnectionLost, ForwardRefused
from rtunnel.gateway import Gateway
from rtunnel.gateway.penalties import Failure, PenaltyBox
from rtunnel.gateway.settings import (
    Limits,
    Penalties,
    Rights,
    is_in,
    parse_networks,
)
from rtunnel.proxy_protocol import ProxyHeaderParser, encode
from tests.support.gateways import GatewayServer, Guest
from tests.support.link import Link
from tests.support.other_servers import connect
from tests.support.ports import free_port, listens, wait_listening
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    Target,
    ask,
    background,
    echo,
    read_all,
    read_end,
    read_exactly,
    reset,
    say,
    send_and_end,
    visit,
)

LOCAL = parse_networks(["127.0.0.0/8"])
VISITOR = ("192.0.2.7", 54321)
HERE = ("198.51.100.1", 443)


# Limits.


def test_a_user_has_so_many_connections_and_no_more(tmp_path: Path) -> None:
    with GatewayServer(tmp_path, rights=Rights(connections_max=1)) as server:
        with connect(server) as tunnel:
            with server.forward(1) as ssh:
                assert ssh.status() == 255
                assert "more than 1 connections of this user" in ssh.said
            assert not tunnel.wait(0.0)
        wait_until(lambda: not server.gateway._sessions)
        with server.serving(say(b"next")) as ssh:
            assert ask(ssh.port()) == b"next"


def test_all_clients_together_have_so_many_connections(tmp_path: Path) -> None:
    limits = Limits(connections_max=1)
    with GatewayServer(tmp_path, limits=limits) as server:
        with connect(server), visit(server.port) as second:
            assert read_all(second) == b"Too many connections\r\n"
        wait_until(lambda: not server.gateway._sessions)
        connect(server).close()


def test_a_user_has_so_many_listeners_and_no_more(tmp_path: Path) -> None:
    with (
        GatewayServer(tmp_path, rights=Rights(listeners_max=2)) as server,
        connect(server) as tunnel,
        connect(server) as other,
    ):
        listeners = [each.listen(0, echo) for each in (tunnel, other)]
        with pytest.raises(ForwardRefused, match="more than 2 listeners are disabled"):
            tunnel.listen(0, echo)
        listeners[1].close()
        tunnel.listen(0, echo)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_a_connection_has_so_many_visitors_at_the_same_time(
    tmp_path: Path, cipher: str
) -> None:
    with (
        GatewayServer(tmp_path, rights=Rights(channels_max=2)) as server,
        server.serving(echo, "0", "-c", cipher) as ssh,
    ):
        port = ssh.port()
        socks = [visit(port), visit(port)]
        for sock in socks:
            sock.sendall(b"1")
            assert read_exactly(sock, 1) == b"1"
        with visit(port) as third:
            assert third.recv(1) == b""
        row = server.gateway.status().connections[0].listeners[0]
        assert (row.connections_open, row.refused) == (2, 1)
        socks[0].close()
        wait_until(
            lambda: (
                server.gateway.status().connections[0].listeners[0].connections_open
                == 1
            )
        )
        with visit(port) as fourth:
            fourth.sendall(b"4")
            assert read_exactly(fourth, 1) == b"4"
        socks[1].close()


def test_who_tries_too_many_keys_is_sent_away(tmp_path: Path) -> None:
    strangers = [Guest(tmp_path, f"stranger{number}") for number in range(3)]
    keys = [option for each in strangers for option in ("-i", str(each.user_key))]
    limits = Limits(auth_tries_max=2)
    with GatewayServer(tmp_path, limits=limits) as server:
        server.user_key = strangers[0].user_key
        with server.forward(1, "0", *keys) as ssh:
            assert ssh.status() == 255
            assert "too many authentication failures" in ssh.said


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_all_visitors_of_a_user_keep_its_rate_together_and_no_byte_is_changed(
    tmp_path: Path, cipher: str
) -> None:
    rate, data = 400_000, os.urandom(200_000)
    with (
        GatewayServer(tmp_path, rights=Rights(rate_bytes_per_s=rate)) as server,
        server.serving(say(data), "0", "-c", cipher) as one,
        server.serving(say(data), "0", "-c", cipher) as two,
        visit(one.port()) as first,
        visit(two.port()) as second,
    ):
        begin = time.monotonic()
        with background(read_all, second) as others:
            assert read_all(first) == data
        assert others == [data]
        # All but the burst that a bucket allows; slower is no mistake.
        assert time.monotonic() - begin > 0.7
        first.close()
        second.close()
        wait_until(lambda: not server.gateway._feeder._rates)


def test_streams_through_a_rate_end_as_others_do(tmp_path: Path) -> None:
    def count(conn: socket.socket) -> None:
        conn.sendall(b"%d bytes" % len(read_all(conn)))

    rights = Rights(rate_bytes_per_s=50_000_000)
    with (
        GatewayServer(tmp_path, rights=rights) as server,
        server.serving(count) as ssh,
        connect(server) as tunnel,
    ):
        port = ssh.port()
        with visit(port) as sock:
            send_and_end(sock, b"x" * 1_000_000)
            assert read_all(sock) == b"1000000 bytes"
        ended = threading.Event()

        def until_reset(conn: socket.socket) -> None:
            conn.sendall(b"hello")
            read_end(conn)
            ended.set()

        sock = visit(tunnel.listen(0, until_reset).port)
        assert read_exactly(sock, 5) == b"hello"
        reset(sock)
        assert ended.wait(20.0)
        dead = tunnel.listen(0, f"127.0.0.1:{free_port()}").port
        assert ask(dead) == b""


# Clients that are dead.


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_a_client_that_answers_no_more_is_given_up_and_its_port_is_free(
    tmp_path: Path, cipher: str
) -> None:
    limits = Limits(client_alive_interval_s=1.0, client_alive_count_max=3)
    with (
        GatewayServer(tmp_path, limits=limits) as server,
        server.forward(1, "0", "-c", cipher) as ssh,
    ):
        port = ssh.port()
        os.kill(ssh.process.pid, signal.SIGSTOP)
        wait_until(lambda: not listens(port))
        wait_until(lambda: not server.gateway.status().connections)


def test_a_client_behind_a_network_that_is_gone_is_given_up(tmp_path: Path) -> None:
    limits = Limits(client_alive_interval_s=1.0, client_alive_count_max=3)
    with GatewayServer(tmp_path, limits=limits) as server, Link(server.port) as link:
        server.known_hosts.write_text(
            server.gateway.known_hosts_line().replace(
                str(server.gateway.port), str(link.port)
            )
        )
        server.port = link.port
        with server.forward(1) as ssh:
            port = ssh.port()
            link.freeze()
            wait_until(lambda: not listens(port))


def test_a_client_that_answers_is_kept(tmp_path: Path) -> None:
    limits = Limits(client_alive_interval_s=0.5, client_alive_count_max=8)
    with (
        GatewayServer(tmp_path, limits=limits) as server,
        server.serving(say(b"alive")) as ssh,
        connect(server) as tunnel,
    ):
        port = ssh.port()
        assert not tunnel.wait(5.0)
        assert ask(port) == b"alive"


# Penalties.


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def box(**settings: object) -> tuple[PenaltyBox, Clock]:
    clock = Clock()
    return PenaltyBox(Penalties(**settings), clock), clock  # type: ignore[arg-type]


def test_failures_add_up_until_the_address_is_refused_for_that_long() -> None:
    penalties, clock = box()
    for _ in range(2):
        penalties.penalise("192.0.2.1", Failure.AUTH)
    assert not penalties.refuses("192.0.2.1")
    penalties.penalise("192.0.2.1", Failure.AUTH)
    assert penalties.refuses("192.0.2.1")
    assert not penalties.refuses("192.0.2.2")
    clock.now_s += 14.9
    assert penalties.refuses("192.0.2.1")
    clock.now_s += 0.2
    assert not penalties.refuses("192.0.2.1")


def test_what_was_waited_for_is_forgotten() -> None:
    penalties, clock = box()
    for _ in range(10):
        penalties.penalise("192.0.2.1", Failure.AUTH)
        clock.now_s += 5.1
    assert not penalties.refuses("192.0.2.1")


def test_no_penalty_is_longer_than_the_longest() -> None:
    penalties, clock = box(max_s=100.0)
    for _ in range(50):
        penalties.penalise("192.0.2.1", Failure.GRACE_EXCEEDED)
    clock.now_s += 100.1
    assert not penalties.refuses("192.0.2.1")


def test_networks_are_penalised_as_one_and_some_never_are() -> None:
    exempt = parse_networks(["10.0.0.0/8"])
    penalties, _ = box(prefix_ipv6=64, exempt=exempt)
    penalties.penalise("127.0.0.1", Failure.GRACE_EXCEEDED)
    assert penalties.refuses("127.0.0.1")
    penalties.penalise("10.1.2.3", Failure.GRACE_EXCEEDED)
    assert not penalties.refuses("10.1.2.3")
    penalties.penalise("2001:db8::1", Failure.GRACE_EXCEEDED)
    assert penalties.refuses("2001:db8::2")
    assert not penalties.refuses("2001:db8:0:1::1")


def test_this_machine_is_not_penalised_unless_that_is_wanted() -> None:
    penalties, _ = box()
    for address in ("127.0.0.1", "::1", "127.1.2.3"):
        penalties.penalise(address, Failure.GRACE_EXCEEDED)
        assert not penalties.refuses(address)


def test_the_memory_for_penalties_has_an_end_and_keeps_the_worst() -> None:
    penalties, _ = box(sources_max=16)
    for _ in range(3):
        penalties.penalise("192.0.2.1", Failure.GRACE_EXCEEDED)
    for number in range(100):
        penalties.penalise(f"198.51.100.{number}", Failure.NO_AUTH)
    assert len(penalties._entries) <= 16
    assert penalties.refuses("192.0.2.1")


def fail_to_log_in(server: GatewayServer, stranger: Guest) -> str:
    with stranger.meet(server.gateway).forward(1, "0", "-v") as ssh:
        assert ssh.status() == 255
        return ssh.said


def test_who_cannot_log_in_again_and_again_is_refused_at_the_door(
    tmp_path: Path,
) -> None:
    stranger = Guest(tmp_path, "stranger")
    penalties = Penalties(authfail_s=60.0, min_s=90.0, exempt=())
    with GatewayServer(tmp_path, penalties=penalties) as server:
        for _ in range(2):
            assert "Permission denied (publickey)" in fail_to_log_in(server, stranger)
            wait_until(lambda: not server.gateway._sessions)
        assert "Not allowed at this time" in fail_to_log_in(server, stranger)


def test_who_logs_in_is_never_penalised(tmp_path: Path) -> None:
    seconds = {"authfail_s": 100.0, "noauth_s": 100.0, "grace_exceeded_s": 100.0}
    penalties = Penalties(exempt=(), **seconds)
    with GatewayServer(tmp_path, penalties=penalties) as server:
        for _ in range(2):
            connect(server).close()
            wait_until(lambda: not server.gateway._sessions)


# PROXY headers.


class LoadBalancer:
    """Puts bytes before each connection to a port."""

    def __init__(self, port: int, header: Callable[[], bytes]) -> None:
        self._to, self._header = port, header
        self._target = Target(self._serve)
        self.port = self._target.port

    def _serve(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._to)) as server:
            server.sendall(self._header())
            pump.relay(client.dup(), server.dup())

    def __enter__(self) -> LoadBalancer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._target.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_load_balancer_says_from_where_a_client_comes(
    tmp_path: Path, version: int
) -> None:
    options = 'from="192.0.2.0/24"'
    with (
        GatewayServer(tmp_path, options, proxies=LOCAL) as server,
        LoadBalancer(server.port, lambda: encode(version, VISITOR, HERE)) as balancer,
    ):
        server.known_hosts.write_text(
            server.known_hosts.read_text().replace(str(server.port), str(balancer.port))
        )
        server.port = balancer.port
        with server.serving(say(b"hello")) as ssh:
            assert ask(ssh.port()) == b"hello"
            (connection,) = server.gateway.status().connections
            assert connection.destination == "guest@192.0.2.7:54321"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-nobody\r\n",
        b"PROXY TCP4 nonsense\r\n",
        encode(2, VISITOR)[:12] + bytes(4),
    ],
)
def test_a_load_balancer_that_sends_no_header_is_not_served(
    tmp_path: Path, data: bytes
) -> None:
    with GatewayServer(tmp_path, proxies=LOCAL) as server, visit(server.port) as sock:
        sock.sendall(data)
        assert read_end(sock) in (b"", None)


def test_nobody_else_may_say_from_where_it_comes(tmp_path: Path) -> None:
    proxies = parse_networks(["192.0.2.99"])
    with (
        GatewayServer(tmp_path, 'from="192.0.2.0/24"', proxies=proxies) as server,
        visit(server.port) as sock,
    ):
        sock.sendall(encode(2, VISITOR, HERE))
        assert b"PROXY" not in read_all(sock)
        assert not server.gateway.status().connections


def test_penalties_hit_whom_the_header_names_and_not_the_load_balancer(
    tmp_path: Path,
) -> None:
    penalties = Penalties(noauth_s=100.0, exempt=())
    with GatewayServer(tmp_path, proxies=LOCAL, penalties=penalties) as server:

        def knock(host: str) -> bytes:
            with visit(server.port) as sock:
                sock.sendall(encode(1, (host, 1), HERE))
                return sock.recv(4)

        assert knock("192.0.2.1") == b"SSH-"
        wait_until(lambda: server.gateway._penalties.refuses("192.0.2.1"))
        assert knock("192.0.2.1") == b"Not "
        assert knock("192.0.2.2") == b"SSH-"
        # A health check, with the load balancer's own address.
        for _ in range(2):
            with visit(server.port) as sock:
                sock.sendall(encode(1, None, None))
                assert sock.recv(4) == b"SSH-"
            wait_until(lambda: not server.gateway._sessions)


def test_who_owes_a_header_counts_as_a_stranger(tmp_path: Path) -> None:
    limits = Limits(unauthenticated_max=1)
    with (
        GatewayServer(tmp_path, proxies=LOCAL, limits=limits) as server,
        visit(server.port),
    ):
        wait_until(lambda: server.gateway._readers)
        with visit(server.port) as second:
            assert read_all(second) == b"Too many connections\r\n"


def test_a_header_that_does_not_come_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtunnel.gateway.header_reader.HEADER_TIMEOUT_S", 0.3)
    with GatewayServer(tmp_path, proxies=LOCAL) as server, visit(server.port) as sock:
        assert sock.recv(1) == b""
        wait_until(lambda: not server.gateway._readers)


def header_then(rest: bytes) -> Callable[[socket.socket], None]:
    """Return a target that answers whose visit it is, and what follows the header."""

    def serve(conn: socket.socket) -> None:
        parser = ProxyHeaderParser()
        header = None
        while header is None:
            header = parser.feed(conn.recv(parser.wanted))
        more = read_exactly(conn, len(rest))
        conn.sendall(f"{header.version} {header.source} {more!r}".encode())

    return serve


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_a_target_behind_plain_ssh_is_told_who_the_visitor_is(
    tmp_path: Path, version: int, cipher: str
) -> None:
    rights = Rights(proxy_protocol=version)
    with (
        GatewayServer(tmp_path, rights=rights) as server,
        server.serving(header_then(b"hello"), "0", "-c", cipher) as ssh,
        visit(ssh.port()) as sock,
    ):
        sock.sendall(b"hello")
        me = sock.getsockname()
        assert read_all(sock).decode() == f"{version} {me} b'hello'"


def test_a_visitor_behind_a_load_balancer_keeps_its_address_to_the_target(
    tmp_path: Path,
) -> None:
    seen: list[tuple[str, int]] = []

    def handler(conn: socket.socket, visitor: rtunnel.Visitor) -> None:
        seen.append((visitor.address, visitor.port))
        assert conn.recv(7) == b"payload"

    with (
        GatewayServer(tmp_path, visitor_proxies=LOCAL) as server,
        connect(server) as tunnel,
    ):
        port = tunnel.listen(0, handler).port
        with visit(port) as sock:
            sock.sendall(encode(2, VISITOR, HERE) + b"payload")
            assert read_all(sock) == b""
        assert seen == [VISITOR]
        with visit(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n")
            assert read_end(sock) in (b"", None)
        assert seen == [VISITOR]


@pytest.mark.parametrize("backend", ["engine", "pump", "python"])
def test_a_target_sees_the_visitor_through_load_balancer_gateway_and_client(
    tmp_path: Path, backend: str
) -> None:
    with (
        GatewayServer(tmp_path, visitor_proxies=LOCAL) as server,
        Target(header_then(b"hello")) as target,
        connect(server, backend) as tunnel,
    ):
        port = tunnel.listen(0, target.spec, proxy_protocol=2).port
        with visit(port) as sock:
            sock.sendall(encode(1, VISITOR, HERE) + b"hello")
            assert read_all(sock).decode() == f"2 {VISITOR} b'hello'"


def test_who_still_owes_a_header_is_let_go_when_the_gateway_closes(
    tmp_path: Path,
) -> None:
    with (
        GatewayServer(tmp_path, visitor_proxies=LOCAL) as server,
        connect(server) as tunnel,
        visit(tunnel.listen(0, echo).port) as sock,
    ):
        wait_until(lambda: server.gateway._listeners._readers)
        server.gateway.close()
        assert sock.recv(1) == b""


# Networks.


def test_addresses_are_in_networks_whatever_they_look_like() -> None:
    networks = parse_networks(["10.0.0.0/8", "2001:db8::/32"])
    assert is_in("10.1.1.1", networks)
    assert is_in("::ffff:10.1.1.1", networks)
    assert is_in("2001:db8::1%eth0", networks)
    assert not is_in("11.0.0.1", networks)
    assert not is_in("", networks)
    assert networks[0] == ipaddress.ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_networks(["10.0.0.1/8"]), "no address and no network"),
        (lambda: Limits(connections_max=0), "connections_max is a number above 0"),
        (lambda: Limits(client_alive_interval_s=-1), "client_alive_interval_s"),
        (lambda: Penalties(authfail_s=-1), "authfail_s is a number from 0 on"),
        (lambda: Penalties(prefix_ipv4=33), "prefix_ipv4 is 0 to 32"),
        (lambda: Gateway(), "would serve nobody"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_lost_gateway_is_noticed_by_its_client(tmp_path: Path) -> None:
    with GatewayServer(tmp_path) as server, connect(server) as tunnel:
        port = tunnel.listen(free_port(), echo).port
        wait_listening(port)
        server.gateway.close()
        with pytest.raises(ConnectionLost):
            tunnel.wait(20.0)
