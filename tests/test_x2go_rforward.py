"""python-x2go's names for reverse tunnels, and each fault of the original undone."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest

from rtunnel import Transport
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    TIMEOUT_S,
    Target,
    open_transport,
    read_all,
    send_and_end,
    visit,
)
from x2go_session.rforward import (
    X2GoRevFwChannelThread,
    X2GoRevFwTunnel,
    x2go_rev_forward_channel_handler,
    x2go_transport_tcp_handler,
)

BULK_BYTES = 4 * 1024 * 1024


@pytest.fixture(params=[Transport, paramiko.Transport], ids=["rtunnel", "stock"])
def transport(request: pytest.FixtureRequest, sshd: Sshd) -> Iterator[Any]:
    """The session layer's own transport, and one as python-x2go has it."""
    opened = open_transport(sshd, request.param)
    yield opened
    opened.close()


@pytest.fixture
def target() -> Iterator[Target]:
    """A target here that answers, at the end of what it got, with the same."""
    opened = Target(echo_at_end)
    yield opened
    opened.close()


def echo_at_end(conn: socket.socket) -> None:
    conn.sendall(read_all(conn))


@contextlib.contextmanager
def tunnel_to(
    target_port: int, transport: Any, session: object = None
) -> Iterator[X2GoRevFwTunnel]:
    tunnel = X2GoRevFwTunnel(
        free_port(), "127.0.0.1", target_port, transport, session_instance=session
    )
    tunnel.start()
    wait_until(lambda: tunnel.is_listening, TIMEOUT_S)
    yield tunnel
    tunnel.stop_thread()
    assert not tunnel.is_alive()


def ask(port: int, data: bytes) -> bytes:
    """Send to a port, say that nothing follows, return the answer."""
    with visit(port) as visitor:
        sender = threading.Thread(target=send_and_end, args=(visitor, data))
        sender.start()
        answer = read_all(visitor)
        sender.join()
    return answer


def is_taken(port: int) -> bool:
    """Whether anybody listens on this port, which is the server's and ours."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_connection_is_taken_to_its_target(transport: Any, target: Target) -> None:
    with tunnel_to(target.port, transport) as tunnel:
        assert ask(tunnel.server_port, b"hello") == b"hello"
    assert not is_taken(tunnel.server_port)


def test_no_byte_of_a_long_stream_is_lost_and_a_half_is_enough_to_finish(
    transport: Any, target: Target
) -> None:
    data = os.urandom(BULK_BYTES)
    with tunnel_to(target.port, transport) as tunnel:
        assert ask(tunnel.server_port, data) == data


def test_connections_of_two_ports_never_get_mixed_up(transport: Any) -> None:
    def name_of(name: bytes) -> Target:
        return Target(lambda conn: conn.sendall(name))

    first, second = name_of(b"sound"), name_of(b"sshfs")
    with (
        tunnel_to(first.port, transport) as sound,
        tunnel_to(second.port, transport) as sshfs,
    ):
        got: queue.Queue[tuple[str, bytes]] = queue.Queue()

        def note(name: str, port: int) -> None:
            got.put((name, ask(port, b"")))

        threads = [
            threading.Thread(target=note, args=each)
            for each in [("sound", sound.server_port), ("sshfs", sshfs.server_port)]
            * 20
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = [got.get_nowait() for _ in threads]
        assert [each for each in answers if each[0].encode() != each[1]] == []
    first.close()
    second.close()


def test_a_target_that_is_dead_closes_the_connection(transport: Any) -> None:
    with tunnel_to(free_port(), transport) as tunnel:
        assert ask(tunnel.server_port, b"") == b""


def test_a_pause_closes_connections_and_gives_the_port_back(
    transport: Any, target: Target
) -> None:
    with tunnel_to(target.port, transport) as tunnel:
        with visit(tunnel.server_port) as visitor:
            visitor.sendall(b"begun")
            wait_until(lambda: target.accepted == 1, TIMEOUT_S)
            tunnel.pause()
            with contextlib.suppress(ConnectionResetError):
                assert visitor.recv(1) == b""
        assert not is_taken(tunnel.server_port)
        assert not tunnel.is_listening
        tunnel.resume()
        wait_until(lambda: tunnel.is_listening, TIMEOUT_S)
        assert ask(tunnel.server_port, b"again") == b"again"


def test_a_cancel_works_whatever_address_it_names(
    transport: Any, target: Target
) -> None:
    """The server only cancels what was requested; "" was never requested."""
    with tunnel_to(target.port, transport) as tunnel:
        tunnel.cancel_port_forward("", tunnel.server_port)
        assert not is_taken(tunnel.server_port)
        # Of nobody's port, and of a strange address: ignored.
        tunnel.cancel_port_forward("192.0.2.1", free_port())


class HookedSession:
    """A session as python-x2go's, as far as a tunnel calls it."""

    def __init__(self) -> None:
        self.denied: queue.Queue[int] = queue.Queue()

    def HOOK_rforward_request_denied(self, server_port: int) -> None:
        self.denied.put(server_port)


def test_a_port_that_is_refused_twice_is_told_and_can_be_asked_for_again(
    transport: Any, target: Target
) -> None:
    session = HookedSession()
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        tunnel = X2GoRevFwTunnel(
            port, "127.0.0.1", target.port, transport, session_instance=session
        )
        tunnel.start()
        assert session.denied.get(timeout=TIMEOUT_S) == port
        assert not tunnel.is_listening
    tunnel.resume()
    wait_until(lambda: tunnel.is_listening, TIMEOUT_S)
    tunnel.stop_thread()
    assert session.denied.empty()


def test_a_port_that_is_free_a_moment_later_is_taken(
    transport: Any, target: Target
) -> None:
    session = HookedSession()
    occupant = socket.create_server(("127.0.0.1", 0))
    port = occupant.getsockname()[1]
    tunnel = X2GoRevFwTunnel(port, "127.0.0.1", target.port, transport, session)
    messages: queue.Queue[str] = queue.Queue()
    tunnel.logger = lambda message, loglevel: messages.put(message)
    tunnel.start()
    # Given back between the first request and the second: the pause is a second.
    threading.Timer(0.3, occupant.close).start()
    wait_until(lambda: tunnel.is_listening or not messages.empty(), TIMEOUT_S)
    if not tunnel.is_listening:  # on a machine that slept through that second
        tunnel.resume()
        wait_until(lambda: tunnel.is_listening, TIMEOUT_S)
    tunnel.stop_thread()


def test_a_tunnel_of_a_dead_connection_ends(sshd: Sshd) -> None:
    transport = open_transport(sshd, Transport)
    transport.close()
    tunnel = X2GoRevFwTunnel(free_port(), "127.0.0.1", 9, transport)
    tunnel.start()
    tunnel.join(TIMEOUT_S)
    assert not tunnel.is_alive()
    tunnel.stop_thread()


# Channels that somebody else asked for, as python-x2go's own control session does.


def test_the_handler_takes_a_channel_to_the_tunnel_of_its_port(
    transport: Any, target: Target
) -> None:
    port = transport.request_port_forward(
        "127.0.0.1", 0, handler=x2go_transport_tcp_handler
    )
    with tunnel_to(target.port, transport) as tunnel:
        services = {"snd": (port, tunnel), "sshfs": (0, None)}
        transport.reverse_tunnels = {"session": services}
        data = os.urandom(BULK_BYTES)
        assert ask(port, data) == data
        with visit(port) as visitor:
            visitor.sendall(b"begun")
            wait_until(lambda: target.accepted == 2, TIMEOUT_S)
            tunnel.pause()
            with contextlib.suppress(ConnectionResetError):
                assert visitor.recv(1) == b""
        assert ask(port, b"") == b""  # while it is paused
        assert target.accepted == 2


def test_a_channel_for_no_tunnel_is_queued_as_paramiko_does(transport: Any) -> None:
    port = transport.request_port_forward(
        "127.0.0.1", 0, handler=x2go_transport_tcp_handler
    )
    with visit(port) as visitor:
        channel = transport.accept(TIMEOUT_S)
        channel.sendall(b"queued")
        channel.close()
        assert read_all(visitor) == b"queued"


def test_a_channel_whose_target_is_dead_is_closed(transport: Any) -> None:
    channels: queue.Queue[Any] = queue.Queue()
    port = transport.request_port_forward(
        "127.0.0.1", 0, handler=lambda channel, origin, server: channels.put(channel)
    )
    with visit(port) as visitor:
        channel = channels.get(timeout=TIMEOUT_S)
        dead = free_port()
        thread = X2GoRevFwChannelThread(
            channel,
            ("127.0.0.1", dead),
            target=x2go_rev_forward_channel_handler,
            kwargs={"chan": channel, "addr": "127.0.0.1", "port": dead},
        )
        thread.start()
        assert read_all(visitor) == b""
        thread.join(TIMEOUT_S)
        assert (thread.is_alive(), thread.remote_port) == (False, dead)
