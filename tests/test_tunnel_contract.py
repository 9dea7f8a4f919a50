"""What a tunnel does, whichever backend moves the bytes: against a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtunnel import Tunnel
from rtunnel.errors import ConnectionLost, TargetUnreachable
from rtunnel.tunnel import ListenerState
from tests.support.files import inheritable_files, open_files
from tests.support.ports import free_port
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
    reset,
    say,
    send_and_end,
    visit,
)

MIB = 1024 * 1024


# Bytes.


def test_bytes_arrive_unchanged_in_both_directions_at_once(tunnel: Tunnel) -> None:
    data = noise(5 * MIB + 123)
    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        with visit(listener.port) as sock, background(send_and_end, sock, data):
            assert read_all(sock) == data
        wait_until(lambda: listener.stats().connections_open == 0)
        stats = listener.stats()
        assert (stats.bytes_in, stats.bytes_out) == (len(data), len(data))


def test_many_visitors_at_once_each_get_their_own_bytes(tunnel: Tunnel) -> None:
    with Target(echo) as target:
        port = tunnel.listen(PORT_0, target.spec).port

        def one(number: int) -> bool:
            data = bytes([number]) * 100_000
            with visit(port) as sock, background(send_and_end, sock, data):
                return read_all(sock) == data

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, range(48)))


def test_five_hundred_channels_at_once(tunnel: Tunnel, many_files: None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.readexactly(4))
        await reader.read()

    listener = tunnel.listen(PORT_0, serve)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(visit(listener.port)) for _ in range(500)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%04d" % number)
        for number, sock in enumerate(socks):
            assert read_exactly(sock, 13) == b"you said %04d" % number
        assert listener.stats().connections_open == 500
    wait_until(lambda: listener.stats().connections_open == 0)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow more open files than the 1024 that are usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_file_is_left_open_when_everything_has_ended(
    sshd: Sshd, backend: str
) -> None:
    def use_a_tunnel() -> None:
        with Target(echo) as target, open_tunnel(sshd, backend) as tunnel:
            for listener in (
                tunnel.listen(PORT_0, target.spec),
                tunnel.listen(PORT_0, lambda conn: echo(conn)),
                tunnel.listen(PORT_0, f"127.0.0.1:{free_port()}"),
            ):
                for _ in range(10):
                    ask(listener.port)
            with visit(tunnel.listen(PORT_0).port):
                wait_until(lambda: tunnel.stats().connections_open == 1)

    before = open_files()
    use_a_tunnel()
    wait_until(lambda: gc.collect() >= 0 and open_files() <= before)


def test_no_file_of_a_tunnel_is_inherited_by_other_programs(
    sshd: Sshd, backend: str
) -> None:
    async def serve_async(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read()

    before = inheritable_files()
    with (
        Target(echo) as target,
        open_tunnel(sshd, backend) as tunnel,
        contextlib.ExitStack() as visitors,
    ):
        for handler in (target.spec, echo, serve_async):
            visitors.enter_context(visit(tunnel.listen(PORT_0, handler).port))
        wait_until(lambda: tunnel.stats().connections_open == 3)
        with tunnel.dial(target.spec):
            assert inheritable_files() == before


def test_two_busy_forwards_do_not_mix(tunnel: Tunnel) -> None:
    with Target(echo) as first, Target(say(b"second" * 100_000)) as second:
        one = tunnel.listen(PORT_0, first.spec)
        two = tunnel.listen(PORT_0, second.spec)

        def ask_one(number: int) -> bool:
            data = noise(200_000)
            with visit(one.port) as sock, background(send_and_end, sock, data):
                return read_all(sock) == data

        def ask_two(number: int) -> bool:
            return ask(two.port) == b"second" * 100_000

        with ThreadPoolExecutor(8) as pool:
            results = [pool.submit(f, n) for n in range(12) for f in (ask_one, ask_two)]
            assert all(result.result() for result in results)


def test_small_pieces_go_back_and_forth(tunnel: Tunnel) -> None:
    with (
        Target(echo) as target,
        visit(tunnel.listen(PORT_0, target.spec).port) as sock,
    ):
        for number in range(200):
            word = b"%d" % number
            sock.sendall(word)
            assert read_exactly(sock, len(word)) == word


def test_bytes_sent_while_the_target_is_being_dialled_are_delivered_first(
    tunnel: Tunnel,
) -> None:
    listener = tunnel.listen(PORT_0)
    with visit(listener.port) as sock:
        sock.sendall(b"early")
        conn, _ = listener.accept(TIMEOUT_S)
        with conn:
            sock.sendall(b", late")
            assert read_exactly(conn, 11) == b"early, late"


# Ends.


def test_the_visitor_may_end_first_and_still_read(tunnel: Tunnel) -> None:
    def serve(conn: socket.socket) -> None:
        conn.sendall(b"%d bytes" % len(read_all(conn)) + b"." * MIB)

    with (
        Target(serve) as target,
        visit(tunnel.listen(PORT_0, target.spec).port) as sock,
    ):
        send_and_end(sock, b"x" * MIB)
        assert read_all(sock) == b"%d bytes" % MIB + b"." * MIB


def test_the_target_may_end_first_and_still_read(tunnel: Tunnel) -> None:
    got: list[bytes] = []

    def serve(conn: socket.socket) -> None:
        send_and_end(conn, b"." * MIB)
        got.append(read_all(conn))

    with (
        Target(serve) as target,
        visit(tunnel.listen(PORT_0, target.spec).port) as sock,
    ):
        assert read_all(sock) == b"." * MIB
        send_and_end(sock, b"x" * MIB)
        wait_until(lambda: got == [b"x" * MIB])


def test_a_connection_without_a_byte_ends_on_both_sides(tunnel: Tunnel) -> None:
    with Target(say(b"")) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        assert ask(listener.port) == b""
        wait_until(lambda: listener.stats().connections_open == 0)


def test_a_visitor_that_vanishes_ends_the_target_s_connection(tunnel: Tunnel) -> None:
    ended = threading.Event()

    def serve(conn: socket.socket) -> None:
        conn.sendall(b"hello")
        read_end(conn)
        ended.set()

    with Target(serve) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        sock = visit(listener.port)
        assert read_exactly(sock, 5) == b"hello"
        reset(sock)
        assert ended.wait(TIMEOUT_S)
        wait_until(lambda: listener.stats().connections_open == 0)


def test_a_target_that_resets_ends_the_visitor_s_connection_at_once(
    tunnel: Tunnel,
) -> None:
    def serve(conn: socket.socket) -> None:
        read_exactly(conn, 5)
        reset(conn)

    with Target(serve) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        for _ in range(2):
            with visit(listener.port) as sock:
                sock.sendall(b"hello")
                assert read_end(sock) in (b"", None)
        wait_until(lambda: listener.stats().connections_open == 0)


def test_a_reader_that_never_reads_stalls_only_its_own_channel(tunnel: Tunnel) -> None:
    stop = threading.Event()

    def never_read(conn: socket.socket) -> None:
        stop.wait(TIMEOUT_S)

    with Target(never_read) as stuck, Target(echo) as target:
        blocked = visit(tunnel.listen(PORT_0, stuck.spec).port)
        blocked.settimeout(0.5)
        with pytest.raises(TimeoutError):  # until the window is full
            blocked.sendall(b"x" * 64 * MIB)
        port = tunnel.listen(PORT_0, target.spec).port
        with visit(port) as sock, background(send_and_end, sock, b"y" * MIB):
            assert read_all(sock) == b"y" * MIB
        blocked.close()
        stop.set()


def test_a_visitor_that_never_reads_stalls_only_its_own_channel(
    tunnel: Tunnel,
) -> None:
    def flood(conn: socket.socket) -> None:
        conn.sendall(b"x" * 64 * MIB)

    with Target(flood) as stuck, Target(echo) as target:
        listener = tunnel.listen(PORT_0, stuck.spec)
        with visit(listener.port) as blocked:
            assert read_exactly(blocked, 1) == b"x"
            port = tunnel.listen(PORT_0, target.spec).port
            with visit(port) as sock, background(send_and_end, sock, b"y" * MIB):
                assert read_all(sock) == b"y" * MIB
            assert listener.stats().connections_open == 1


# Targets.


def test_a_dead_target_closes_the_visitor_and_is_counted(tunnel: Tunnel) -> None:
    dead = f"127.0.0.1:{free_port()}"
    listener = tunnel.listen(PORT_0, dead)
    assert ask(listener.port) == b""
    stats = listener.stats()
    assert (stats.refused, stats.errors, stats.connections_total) == (1, 1, 0)
    assert stats.last_error == f"cannot connect to {dead}: Connection refused"


def test_a_target_that_hangs_delays_no_other_listener(
    tunnel: Tunnel, full_backlog: int
) -> None:
    hung = tunnel.listen(PORT_0, f"127.0.0.1:{full_backlog}", connect_timeout_s=60)
    with Target(echo) as target, visit(hung.port) as waiting:
        listener = tunnel.listen(PORT_0, target.spec)
        waiting.sendall(b"anybody?")
        assert ask(listener.port) == b""
        assert hung.stats().connections_total == 0


def test_a_target_that_hangs_is_given_up_after_the_timeout(
    tunnel: Tunnel, full_backlog: int
) -> None:
    hung = tunnel.listen(PORT_0, f"127.0.0.1:{full_backlog}", connect_timeout_s=0.2)
    assert ask(hung.port) == b""
    assert "did not answer in time" in str(hung.stats().last_error)


@pytest.fixture
def full_backlog() -> Iterator[int]:
    """A port that does not answer: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        place = server.getsockname()
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(place)
        yield place[1]
        for filler in fillers:
            filler.close()


def test_a_name_is_looked_up_and_every_address_tried(tunnel: Tunnel) -> None:
    with Target(say(b"here")) as target:
        by_alias = tunnel.listen(PORT_0, f"localhost:{target.port}")
        assert ask(by_alias.port) == b"here"
        by_name = tunnel.listen(PORT_0, f"LocalHost:{target.port}")
        assert ask(by_name.port) == b"here"
    unknown = tunnel.listen(PORT_0, "no-such-host.invalid:80")
    assert ask(unknown.port) == b""
    assert unknown.stats().errors == 1


def test_a_unix_socket_can_be_the_target(tunnel: Tunnel, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        listener = tunnel.listen(PORT_0, f"unix:{path}")
        with visit(listener.port) as sock:
            conn, _ = server.accept()
            with conn:
                conn.sendall(b"through a path")
            assert read_all(sock) == b"through a path"


def test_the_server_can_listen_on_a_unix_socket(tunnel: Tunnel, tmp_path: Path) -> None:
    path = tmp_path / "remote.sock"
    with Target(echo) as target:
        listener = tunnel.listen(str(path), target.spec)
        assert (listener.port, listener.address) == (0, str(path))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(path))
            send_and_end(sock, b"hello")
            assert read_all(sock) == b"hello"
        listener.close()
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError):  # noqa: PT011
            sock.connect(str(path))


# Ports.


def test_a_visitor_right_behind_the_reply_is_served(tunnel: Tunnel) -> None:
    def first_visit(port: int) -> bytes:
        while True:
            try:
                return ask(port)
            except ConnectionRefusedError:
                continue

    with Target(say(b"welcome")) as target:
        for _ in range(10):
            port = free_port()
            with background(first_visit, port) as answers:
                listener = tunnel.listen(("127.0.0.1", port), target.spec)
            assert answers == [b"welcome"]
            listener.close()


def test_twenty_threads_that_ask_for_port_0_get_twenty_ports(tunnel: Tunnel) -> None:
    def listen(number: int) -> tuple[int, int]:
        def serve(conn: socket.socket) -> None:
            conn.sendall(b"%d" % number)

        return number, tunnel.listen(PORT_0, serve).port

    with ThreadPoolExecutor(20) as pool:
        given = list(pool.map(listen, range(20)))
    assert len({port for _, port in given}) == 20
    for number, port in given:
        assert ask(port) == b"%d" % number


def test_closing_one_listener_keeps_the_others_and_releases_its_port(
    tunnel: Tunnel,
) -> None:
    with Target(echo) as target:
        closed = tunnel.listen(PORT_0, target.spec)
        kept = tunnel.listen(PORT_0, target.spec)
        with visit(kept.port) as sock:
            sock.sendall(b"before")
            assert read_exactly(sock, 6) == b"before"
            closed.close()
            assert closed.state is ListenerState.CLOSED
            with pytest.raises(ConnectionRefusedError):
                visit(closed.port)
            sock.sendall(b"after")
            assert read_exactly(sock, 5) == b"after"
        again = tunnel.listen(("127.0.0.1", closed.port), target.spec)
        assert ask(again.port) == b""
        assert tunnel.listeners == [kept, again]


def test_closing_a_listener_resets_its_visitors(tunnel: Tunnel) -> None:
    with (
        Target(echo) as target,
        visit((listener := tunnel.listen(PORT_0, target.spec)).port) as sock,
    ):
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        listener.close()
        assert read_end(sock) in (b"", None)
        assert listener.wait_closed(TIMEOUT_S)


def test_closing_with_a_drain_lets_visitors_finish(tunnel: Tunnel) -> None:
    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        with visit(listener.port) as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            with background(listener.close, TIMEOUT_S):
                wait_until(lambda: listener.state is ListenerState.CLOSING)
                send_and_end(sock, b"y" * MIB)
                assert read_all(sock) == b"y" * MIB
        assert listener.state is ListenerState.CLOSED


def test_pause_resets_the_visitors_of_one_listener_and_refuses_new_ones(
    tunnel: Tunnel,
) -> None:
    with Target(echo) as target:
        paused = tunnel.listen(PORT_0, target.spec)
        other = tunnel.listen(PORT_0, target.spec)
        with visit(paused.port) as sock, visit(other.port) as stays:
            for conn in (sock, stays):
                conn.sendall(b"x")
                assert read_exactly(conn, 1) == b"x"
            paused.pause()
            assert read_end(sock) in (b"", None)
            assert ask(paused.port) == b""
            stays.sendall(b"y")
            assert read_exactly(stays, 1) == b"y"
        assert paused.stats().connections_total == 1
        assert paused.stats().refused == 1
        paused.resume()
        with visit(paused.port) as sock:
            send_and_end(sock, b"again")
            assert read_all(sock) == b"again"


# To the server.


def test_dial_connects_to_what_the_server_sees(tunnel: Tunnel, tmp_path: Path) -> None:
    with Target(echo) as target, tunnel.dial(target.spec) as sock:
        sock.settimeout(TIMEOUT_S)
        with background(send_and_end, sock, b"x" * 3 * MIB):
            assert read_all(sock) == b"x" * 3 * MIB
    path = tmp_path / "there.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with tunnel.dial(f"unix:{path}") as sock:
            conn, _ = server.accept()
            with conn:
                conn.sendall(b"hello")
            assert read_all(sock) == b"hello"


def test_dialling_a_dead_target_says_so(tunnel: Tunnel) -> None:
    port = free_port()
    with pytest.raises(TargetUnreachable, match="Connection refused") as caught:
        tunnel.dial(f"127.0.0.1:{port}")
    assert caught.value.code == 2


# The connection.


def test_a_server_that_dies_resets_live_connections_and_closes_listeners(
    tmp_path: Path, backend: str
) -> None:
    ended: list[bytes | None] = []

    def serve(conn: socket.socket) -> None:
        conn.sendall(b"hello")
        ended.append(read_end(conn))

    with (
        Sshd(tmp_path) as sshd,
        Target(serve) as target,
        open_tunnel(sshd, backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, target.spec)
        waiting = tunnel.listen(PORT_0)
        with visit(listener.port) as sock:
            assert read_exactly(sock, 5) == b"hello"
            sshd.kill_sessions()
            with pytest.raises(ConnectionLost):
                tunnel.wait(TIMEOUT_S)
        assert listener.state is ListenerState.CLOSED
        assert tunnel.listeners == []
        with pytest.raises(ConnectionLost):
            waiting.accept(TIMEOUT_S)
        with pytest.raises(ConnectionLost):
            tunnel.listen(PORT_0, target.spec)
        wait_until(lambda: ended == [None])  # a reset, not an end of stream


def test_a_rekey_in_mid_transfer_changes_no_byte(tunnel: Tunnel) -> None:
    data = noise(4 * MIB)
    with Target(echo) as target:
        port = tunnel.listen(PORT_0, target.spec).port
        with visit(port) as sock, background(send_and_end, sock, data):
            start = read_exactly(sock, 1000)
            with background(tunnel.transport.renegotiate_keys):
                assert start + read_all(sock) == data


def test_rekeys_forced_by_the_server_change_no_byte(
    tmp_path: Path, backend: str
) -> None:
    data = noise(MIB)
    with (
        Sshd(tmp_path, "RekeyLimit 64K") as sshd,
        Target(echo) as target,
        open_tunnel(sshd, backend) as tunnel,
    ):
        port = tunnel.listen(PORT_0, target.spec).port
        with visit(port) as sock, background(send_and_end, sock, data):
            assert read_all(sock) == data


def test_close_releases_every_port_and_ends_every_thread(
    sshd: Sshd, backend: str
) -> None:
    before = set(threading.enumerate())
    with Target(echo) as target, open_tunnel(sshd, backend) as tunnel:
        ports = [tunnel.listen(PORT_0, to).port for to in (target.spec, echo, None)]
        with visit(ports[0]) as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            tunnel.close()
            assert read_end(sock) in (b"", None)
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                visit(port)
        assert tunnel.wait(TIMEOUT_S)
        tunnel.close()
    assert set(threading.enumerate()) <= before


def test_close_with_a_drain_waits_for_live_connections(
    sshd: Sshd, backend: str
) -> None:
    with Target(echo) as target, open_tunnel(sshd, backend) as tunnel:
        with visit(tunnel.listen(PORT_0, target.spec).port) as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            with background(tunnel.close, TIMEOUT_S):
                wait_until(lambda: tunnel.listeners[0].state is ListenerState.CLOSING)
                send_and_end(sock, b"y" * MIB)
                assert read_all(sock) == b"y" * MIB
        assert tunnel.wait(TIMEOUT_S)


def test_the_stats_of_a_tunnel_are_the_sums_of_its_listeners(tunnel: Tunnel) -> None:
    with Target(echo) as target:
        for size in (10, 100, 1000):
            with (
                tunnel.listen(PORT_0, target.spec) as listener,
                visit(listener.port) as sock,
            ):
                send_and_end(sock, b"x" * size)
                assert read_all(sock) == b"x" * size
        wait_until(lambda: tunnel.stats().connections_open == 0)
        stats = tunnel.stats()
        assert (stats.bytes_in, stats.bytes_out) == (1110, 1110)
        assert (stats.connections_total, stats.listeners) == (3, 0)
        assert stats.backend == tunnel.backend
