"""Rules of a listener for its visitors, whichever backend moves the bytes."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from rtunnel import Tunnel
from rtunnel.proxy_protocol import ProxyHeaderParser
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    echo,
    noise,
    open_tunnel,
    read_all,
    read_end,
    read_exactly,
    say,
    send_and_end,
    visit,
)

MIB = 1024 * 1024
HERE = "127.0.0.0/8"
ELSEWHERE = "192.0.2.0/24"


def is_turned_away(port: int) -> bool:
    with visit(port) as sock:
        return read_end(sock) in (b"", None)


# From where.


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        ({"allow": [HERE]}, True),
        ({"allow": [ELSEWHERE]}, False),
        ({"allow": [ELSEWHERE, HERE]}, True),
        ({"deny": [ELSEWHERE]}, True),
        ({"deny": [HERE]}, False),
        ({"allow": [HERE], "deny": ["127.0.0.1"]}, False),
    ],
)
def test_visitors_are_taken_by_where_they_come_from(
    sshd: Sshd, rules: dict[str, list[str]], taken: bool
) -> None:
    with open_tunnel(sshd, "engine") as tunnel, Target(say(b"hello")) as target:
        listener = tunnel.listen(PORT_0, target.spec, **rules)  # type: ignore[arg-type]
        assert ask(listener.port) == (b"hello" if taken else b"")
        assert target.accepted == int(taken)
        assert listener.stats().refused == int(not taken)


def test_a_visitor_that_is_denied_never_reaches_a_handler(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, deny=[HERE])
    assert ask(listener.port) == b""
    with pytest.raises(TimeoutError):
        listener.accept(0)
    assert (listener.stats().refused, listener.stats().connections_total) == (1, 0)


def test_visitors_of_a_unix_socket_have_no_address_to_go_by(
    sshd: Sshd, tmp_path: Path
) -> None:
    with (
        open_tunnel(sshd, "engine") as tunnel,
        pytest.raises(ValueError, match="have no address"),
    ):
        tunnel.listen(f"{tmp_path}/s", "localhost:1", allow=[HERE])


# How many.


def test_more_visitors_than_may_come_are_turned_away(tunnel: Tunnel) -> None:
    with Target(echo) as target, ExitStack() as stack:
        listener = tunnel.listen(PORT_0, target.spec, max_connections=2)
        other = tunnel.listen(PORT_0, target.spec)
        first, second = (stack.enter_context(visit(listener.port)) for _ in range(2))
        for sock in (first, second):
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        assert is_turned_away(listener.port)
        assert listener.stats().refused == 1
        with visit(other.port) as sock:  # the other one has its own
            send_and_end(sock, b"x")
            assert read_all(sock) == b"x"
        first.close()
        wait_until(lambda: listener.stats().connections_open == 1)
        with visit(listener.port) as sock:
            send_and_end(sock, b"x")
            assert read_all(sock) == b"x"


# How fast.


@pytest.mark.parametrize("visitors", [1, 3])
def test_all_visitors_of_a_listener_keep_its_rate_together(
    tunnel: Tunnel, visitors: int
) -> None:
    rate = 1_000_000
    data = noise(300_000)
    came: list[int] = []

    def count(conn: socket.socket) -> None:
        while part := conn.recv(65536):
            came.append(len(part))
            conn.sendall(part)

    with Target(count) as target:
        listener = tunnel.listen(PORT_0, target.spec, rate_bytes_per_s=rate)
        began_s = time.monotonic()

        def one(number: int) -> bool:
            with visit(listener.port) as sock, background(send_and_end, sock, data):
                return read_all(sock) == data

        with ThreadPoolExecutor(visitors) as pool:
            results = [pool.submit(one, number) for number in range(visitors)]
            while not all(result.done() for result in results):
                moved = max(sum(came), listener.stats().bytes_out)
                assert moved <= rate * (time.monotonic() - began_s)
                time.sleep(0.002)
            assert all(result.result() for result in results)


def test_a_listener_that_waits_for_its_rate_keeps_nobody_else(tunnel: Tunnel) -> None:
    data = noise(2 * MIB)
    with Target(echo) as target:
        slow = tunnel.listen(PORT_0, target.spec, rate_bytes_per_s=10)
        fast = tunnel.listen(PORT_0, target.spec)
        with visit(slow.port) as waits:
            waits.sendall(bytes(MIB))
            with visit(fast.port) as sock, background(send_and_end, sock, data):
                assert read_all(sock) == data
            assert slow.stats().bytes_in < MIB


def test_a_rate_holds_for_services_too(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, "exec:cat", rate_bytes_per_s=1_000_000)
    data = noise(200_000)
    began_s = time.monotonic()
    with visit(listener.port) as sock, background(send_and_end, sock, data):
        assert read_all(sock) == data
    assert time.monotonic() - began_s >= 0.2


# For how long.


def test_a_connection_on_which_nothing_moves_is_reset(
    tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rtunnel.connections")
    ended = threading.Event()

    def serve(conn: socket.socket) -> None:
        conn.sendall(b"hello")
        read_end(conn)
        ended.set()

    with Target(serve) as target:
        listener = tunnel.listen(PORT_0, target.spec, idle_timeout_s=0.2)
        with visit(listener.port) as sock:
            assert read_end(sock) in (b"hello", None)
        assert ended.wait(TIMEOUT_S)
        wait_until(lambda: listener.stats().connections_open == 0)
        wait_until(lambda: "reason=idle" in caplog.text)


@pytest.mark.parametrize(
    ("backend", "side"),
    [
        ("engine", "visitor"),
        ("engine", "target"),
        ("pump", "visitor"),
        ("python", "target"),
    ],
)
def test_a_connection_on_which_something_moves_is_not_idle(
    sshd: Sshd, backend: str, side: str
) -> None:
    stop = threading.Event()

    def trickle(conn: socket.socket) -> None:
        while not stop.wait(0.05):
            conn.sendall(b"x")

    def listen_to(conn: socket.socket) -> None:
        read_end(conn)

    with (
        open_tunnel(sshd, backend) as tunnel,
        Target(trickle if side == "target" else listen_to) as target,
    ):
        listener = tunnel.listen(PORT_0, target.spec, idle_timeout_s=2)
        with visit(listener.port) as sock:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                if side == "visitor":
                    sock.sendall(b"x")
                    time.sleep(0.05)
                else:
                    assert sock.recv(100)
            assert listener.stats().connections_open == 1
            stop.set()


def test_a_target_has_the_time_that_it_was_given_to_answer(tunnel: Tunnel) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        ExitStack() as stack,
    ):
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        target = f"127.0.0.1:{full.getsockname()[1]}"
        listener = tunnel.listen(PORT_0, target, connect_timeout_s=0.1)
        assert is_turned_away(listener.port)
        assert "did not answer in time" in str(listener.stats().last_error)


# Who it is.


@pytest.mark.parametrize("version", [1, 2])
def test_a_target_is_told_who_the_visitor_is(tunnel: Tunnel, version: int) -> None:
    seen = []

    def serve(conn: socket.socket) -> None:
        parser = ProxyHeaderParser()
        while (header := parser.feed(conn.recv(parser.wanted))) is None:
            pass
        seen.append(header)
        echo(conn)

    with Target(serve) as target:
        listener = tunnel.listen(
            PORT_0,
            target.spec,
            proxy_protocol=version,  # type: ignore[arg-type]
        )
        with visit(listener.port) as sock:
            own = sock.getsockname()
            send_and_end(sock, b"hello")
            assert read_all(sock) == b"hello"
        (header,) = seen
        assert header.version == version
        assert header.source == own
        assert header.destination == ("127.0.0.1", listener.port)


# The log.


def test_each_connection_has_a_record_at_its_end(
    tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rtunnel.connections")

    def records(start: str) -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        return [text for text in texts if text.startswith(start)]

    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, target.spec, name="web")
        with visit(listener.port) as sock:
            own_port = sock.getsockname()[1]
            send_and_end(sock, b"secret")
            assert read_all(sock) == b"secret"
        wait_until(lambda: bool(records("connection ended")))
    (opened,), (ended,) = records("connection opened"), records("connection ended")
    match = re.fullmatch(
        r"connection ended: listener=web conn=(\d+) visitor=127\.0\.0\.1 "
        rf"port={own_port} duration_s=\d+\.\d+ bytes_in=6 bytes_out=6 "
        r"reason=closed error=None",
        ended,
    )
    assert match, ended
    assert f"conn={match[1]} " in opened
    assert f"target={target.spec}" in opened
    assert "secret" not in caplog.text


def test_the_record_says_why_this_side_broke_a_connection_off(
    tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rtunnel.connections")
    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        with visit(listener.port) as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            listener.pause()
            assert read_end(sock) in (b"", None)
        wait_until(lambda: listener.stats().connections_open == 0)
        wait_until(lambda: "reason=paused" in caplog.text)
