"""The four kinds of handlers behind a forwarded port, against a real sshd."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtunnel import Tunnel, Visitor
from rtunnel.errors import ListenerClosed
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    echo,
    open_tunnel,
    read_all,
    read_end,
    read_exactly,
    send_and_end,
    visit,
)


def test_a_function_gets_a_real_socket(tunnel: Tunnel) -> None:
    def serve(conn: socket.socket) -> None:
        assert isinstance(conn, socket.socket)
        with conn.makefile("rwb") as stream:
            stream.write(stream.readline().upper())

    with visit(tunnel.listen(PORT_0, serve).port) as sock:
        sock.sendall(b"hello\n")
        assert read_all(sock) == b"HELLO\n"


def test_a_function_that_wants_to_know_gets_the_visitor(tunnel: Tunnel) -> None:
    seen: list[Visitor] = []

    class Service:
        def __call__(self, conn: socket.socket, visitor: Visitor) -> None:
            seen.append(visitor)

    listener = tunnel.listen(PORT_0, Service(), name="service")
    with visit(listener.port) as sock:
        own_port = sock.getsockname()[1]
        assert read_all(sock) == b""
    assert seen == [Visitor("127.0.0.1", own_port, listener)]


def test_handlers_run_beside_each_other_and_off_the_transport_s_thread(
    tunnel: Tunnel,
) -> None:
    both = threading.Barrier(2)
    names: set[str] = set()

    def serve(conn: socket.socket) -> None:
        names.add(threading.current_thread().name)
        assert threading.current_thread() is not tunnel.transport
        both.wait(TIMEOUT_S)

    listener = tunnel.listen(PORT_0, serve, name="pair")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, [listener.port] * 2)) == [b"", b""]
    assert names == {"rtunnel-pair"}


def test_a_coroutine_gets_reader_and_writer(tunnel: Tunnel) -> None:
    async def serve(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, visitor: Visitor
    ) -> None:
        writer.write(visitor.address.encode() + b" said " + await reader.read())

    with visit(tunnel.listen(PORT_0, serve).port) as sock:
        send_and_end(sock, b"hello")
        assert read_all(sock) == b"127.0.0.1 said hello"


def test_coroutines_share_one_loop(tunnel: Tunnel) -> None:
    threads: set[int] = set()
    waiting = 0
    everybody = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        threads.add(threading.get_ident())
        waiting += 1
        if waiting == 8:
            everybody.set()
        await everybody.wait()
        writer.write(b"ok")

    port = tunnel.listen(PORT_0, serve).port
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [port] * 8)) == [b"ok"] * 8
    assert len(threads) == 1


def test_accept_returns_the_visitors_of_a_listener_without_handler(
    tunnel: Tunnel,
) -> None:
    listener = tunnel.listen(PORT_0)
    with visit(listener.port) as sock:
        conn, visitor = listener.accept(TIMEOUT_S)
        with conn:
            conn.sendall(b"hi %d" % visitor.port)
        assert read_all(sock) == b"hi %d" % sock.getsockname()[1]
    with pytest.raises(TimeoutError):
        listener.accept(0.01)


def test_accept_keeps_a_bounded_number_of_visitors_waiting(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, backlog=2)
    with visit(listener.port), visit(listener.port):
        wait_until(lambda: listener.stats().connections_open == 2)
        assert ask(listener.port) == b""
    assert listener.stats().refused == 1
    for _ in range(2):
        listener.accept(TIMEOUT_S)[0].close()


def test_accept_ends_when_the_listener_is_closed(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0)
    failures: list[Exception] = []

    def wait() -> None:
        try:
            listener.accept()
        except ListenerClosed as error:
            failures.append(error)

    with background(wait):
        listener.close()
    assert len(failures) == 1


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_handler_that_raises_resets_its_own_connection_only(
    tunnel: Tunnel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(conn: socket.socket) -> None:
        assert read_exactly(conn, 6) == b"secret"
        raise LookupError("no such page")

    async def fail_async(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert await reader.readexactly(6) == b"secret"
        raise LookupError("no such page")

    failing = tunnel.listen(PORT_0, fail if kind == "function" else fail_async)
    with (
        Target(echo) as target,
        visit(tunnel.listen(PORT_0, target.spec).port) as stays,
    ):
        with visit(failing.port) as sock:
            sock.sendall(b"secret")
            assert read_end(sock) in (b"", None)
        stays.sendall(b"x")
        assert read_exactly(stays, 1) == b"x"
    wait_until(lambda: failing.stats().connections_open == 0)
    assert failing.stats().errors == 1
    assert failing.stats().last_error == "LookupError: no such page"
    failures = [
        r for r in caplog.records if r.getMessage().startswith("handler failed")
    ]
    assert len(failures) == 1
    assert "secret" not in caplog.text


def test_a_handler_may_close_its_own_tunnel(sshd: Sshd, backend: str) -> None:
    with open_tunnel(sshd, backend) as tunnel:

        def serve(conn: socket.socket) -> None:
            tunnel.close()

        assert ask(tunnel.listen(PORT_0, serve).port) == b""
        assert tunnel.wait(TIMEOUT_S)
