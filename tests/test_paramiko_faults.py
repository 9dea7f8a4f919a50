"""Nine faults of paramiko's own port forwarding, each shown to be absent here.

All of them were seen with paramiko 5.1.0: one handler for all ports, run on the
transport's thread, installed after the reply and gone with the first cancel; one slot
for the replies of all requests; channels confirmed whatever port they name; windows
that are neither enforced nor, for extended data, given back; a dead link that is
never noticed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import paramiko
import pytest

import rtunnel
from rtunnel import Tunnel
from rtunnel.errors import ConnectionLost
from rtunnel.ssh import seams
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from rtunnel.wire import string, u32
from tests.support.link import Link
from tests.support.peer import ScriptedPeer
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    read_all,
    read_exactly,
    say,
    transport_class,
    visit,
)

PORT = 8080


@pytest.fixture
def scripted(backend: str) -> object:
    """A tunnel to a scripted peer that grants every request."""
    with ScriptedPeer(transport_class(backend)) as peer:
        peer.transport._handler_table[seams.MSG_GLOBAL_REQUEST] = lambda message: (
            peer.grant()
        )
        with Tunnel(peer.client, backend=backend) as tunnel:
            yield peer, tunnel


def test_b_each_port_has_its_own_handler(tunnel: Tunnel) -> None:
    with Target(say(b"one")) as one, Target(say(b"two")) as two:
        ports = [tunnel.listen(PORT_0, target.spec).port for target in (one, two)]
        assert [ask(port) for port in ports] == [b"one", b"two"]


def test_c_a_handler_can_read_and_delays_nobody_else(tunnel: Tunnel) -> None:
    release = threading.Event()

    def slow(conn: socket.socket) -> None:
        assert read_exactly(conn, 5) == b"hello"
        release.wait(TIMEOUT_S)
        conn.sendall(b"done")

    with visit(tunnel.listen(PORT_0, slow).port) as sock:
        sock.sendall(b"hello")
        # An unrelated exec on the same connection, while the handler is busy.
        session = tunnel.transport.open_session(timeout=TIMEOUT_S)
        session.settimeout(TIMEOUT_S)
        session.exec_command("echo unrelated")
        assert session.makefile().read() == b"unrelated\n"
        session.close()
        release.set()
        assert read_exactly(sock, 4) == b"done"


def test_d_cancelling_one_port_leaves_the_others_served(tunnel: Tunnel) -> None:
    with Target(say(b"served")) as target:
        cancelled, kept = (tunnel.listen(PORT_0, target.spec) for _ in range(2))
        cancelled.close()
        assert ask(kept.port) == b"served"


def test_f_threads_that_ask_for_port_0_together_each_get_their_own(
    tunnel: Tunnel,
) -> None:
    together = threading.Barrier(4)

    def listen(number: int) -> tuple[bytes, int]:
        together.wait(TIMEOUT_S)
        name = b"%d" % number

        def serve(conn: socket.socket) -> None:
            conn.sendall(name)

        return name, tunnel.listen(PORT_0, serve).port

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            given = list(pool.map(listen, range(4)))
            assert [ask(port) for _, port in given] == [name for name, _ in given]


def test_g_a_peer_that_ignores_the_window_is_cut_off(
    scripted: tuple[ScriptedPeer, Tunnel],
) -> None:
    peer, tunnel = scripted
    listener = tunnel.listen(PORT)
    peer.open_forwarded(PORT)
    number = peer.expect_confirmation()
    data = u32(number) + string(bytes(MAX_PACKET_BYTES))
    with contextlib.suppress(EOFError):  # when the connection is gone
        for _ in range(64 * 1024 * 1024 // MAX_PACKET_BYTES):
            peer.send(seams.MSG_CHANNEL_DATA, data)
    wait_until(lambda: peer.disconnect is not None)
    assert "window" in peer.disconnect[1]
    with pytest.raises(ConnectionLost):
        tunnel.wait(TIMEOUT_S)
    assert tunnel.listeners == []
    assert listener.stats().bytes_in < RECEIVE_WINDOW_BYTES * 1.5


def test_h_a_channel_for_a_port_never_requested_is_rejected(
    scripted: tuple[ScriptedPeer, Tunnel],
) -> None:
    peer, tunnel = scripted
    tunnel.listen(PORT)
    peer.open_forwarded(PORT + 1)
    assert peer.expect_open_failure() == 1


def test_i_extended_data_does_not_stall_a_channel(
    scripted: tuple[ScriptedPeer, Tunnel],
) -> None:
    peer, tunnel = scripted
    listener = tunnel.listen(PORT)
    peer.open_forwarded(PORT)
    number = peer.expect_confirmation()
    window = RECEIVE_WINDOW_BYTES
    for _ in range(2 * RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        while window < MAX_PACKET_BYTES or not peer.messages.empty():
            fields = peer.expect(seams.MSG_CHANNEL_WINDOW_ADJUST)
            fields.u32()
            window += fields.u32()
        noise = u32(1) + string(bytes(MAX_PACKET_BYTES))
        peer.send(seams.MSG_CHANNEL_EXTENDED_DATA, u32(number) + noise)
        window -= MAX_PACKET_BYTES
    peer.send(seams.MSG_CHANNEL_DATA, u32(number) + string(b"normal data"))
    conn, _ = listener.accept(TIMEOUT_S)
    with conn:
        assert read_exactly(conn, 11) == b"normal data"


def test_j_a_link_that_went_dead_is_noticed(sshd: Sshd) -> None:
    with Link(sshd.port) as link:
        transport = rtunnel.Transport(("127.0.0.1", link.port))
        key = paramiko.Ed25519Key.from_private_key_file(str(sshd.user_key))
        transport.connect(username=sshd.user, pkey=key)
        transport.set_keepalive(0.1, count_max=2)
        with Tunnel(transport) as tunnel:
            assert not tunnel.wait(0.5)  # an idle link is not a dead one
            link.freeze()
            with pytest.raises(ConnectionLost):
                tunnel.wait(TIMEOUT_S)


def test_k_a_visitor_right_behind_the_reply_is_served(tunnel: Tunnel) -> None:
    def first_visit(port: int) -> bytes:
        # From another address: who connects to a free port of his own often enough
        # meets himself in the end, and has taken it.
        while True:
            try:
                with socket.create_connection(
                    ("127.0.0.1", port), TIMEOUT_S, source_address=("127.0.0.2", 0)
                ) as sock:
                    return read_all(sock)
            except ConnectionRefusedError:
                continue

    with Target(say(b"welcome")) as target:
        for _ in range(20):
            port = free_port()
            with background(first_visit, port) as answers:
                listener = tunnel.listen(("127.0.0.1", port), target.spec)
            assert answers == [b"welcome"]
            listener.close()
