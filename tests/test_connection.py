"""The connection protocol against a scripted server: order, admission, refusals."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import rtunnel
from rtunnel.addresses import parse_bind
from rtunnel.errors import (
    BackendUnavailable,
    ChannelOpenError,
    ConnectionLost,
    ForwardingDenied,
    ForwardRefused,
    PortInUse,
    ProtocolError,
    RequestRefused,
    RequestTimeout,
)
from rtunnel.forwards import Forward
from rtunnel.ssh import seams
from rtunnel.ssh.arrivals import ChannelOpen
from rtunnel.ssh.connection import PARKED_OPENS, Connection
from rtunnel.wire import boolean, string, u32
from tests.support.peer import TIMEOUT_S, ScriptedPeer
from tests.support.sshd import wait_until

PROHIBITED, CONNECT_FAILED, SHORTAGE = 1, 2, 4


@pytest.fixture
def peer() -> Iterator[ScriptedPeer]:
    with ScriptedPeer() as scripted:
        yield scripted


@pytest.fixture
def connection(peer: ScriptedPeer) -> Connection:
    return Connection.of(peer.client, "python")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def forward(bind: Any) -> Forward:
    return Forward(parse_bind(bind))


def result(future: Future[Any]) -> Any:
    return future.result(TIMEOUT_S)


# Global requests.


def test_replies_are_paired_with_requests_in_order(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    asked = [pool.submit(connection.request, f"question-{n}") for n in range(10)]
    kinds = [peer.expect(seams.MSG_GLOBAL_REQUEST).text() for _ in range(10)]
    for kind in kinds:
        peer.grant(kind.encode())
    assert [result(answer) for answer in asked] == [
        f"question-{n}".encode() for n in range(10)
    ]


def test_a_refused_request_is_an_error(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    asked = pool.submit(connection.request, "question")
    peer.expect_request("question")
    peer.refuse()
    with pytest.raises(RequestRefused):
        result(asked)


def test_a_request_nobody_waits_for_keeps_its_place_in_the_order(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    with pytest.raises(RequestTimeout):
        connection.request("slow", timeout_s=0.01)
    asked = pool.submit(connection.request, "quick")
    peer.expect_request("slow")
    peer.expect_request("quick")
    peer.grant(b"late answer")
    peer.grant(b"answer")
    assert result(asked) == b"answer"


def test_replies_to_no_request_are_dropped(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    for _ in range(3):
        peer.grant(b"unsolicited")
        peer.refuse()
    peer.expect_nothing()
    asked = pool.submit(connection.request, "question")
    peer.expect_request("question")
    peer.grant(b"answer")
    assert result(asked) == b"answer"


def test_requests_fail_when_the_connection_ends(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    asked = pool.submit(connection.request, "question")
    peer.expect_request("question")
    peer.transport.close()
    with pytest.raises(ConnectionLost):
        result(asked)
    with pytest.raises(ConnectionLost):
        connection.request("another")


@pytest.mark.parametrize("answer", ["grant", "refuse"])
def test_success_and_failure_both_answer_a_ping(
    peer: ScriptedPeer, connection: Connection, answer: str
) -> None:
    alive = threading.Event()
    connection.ping(alive.set)
    peer.expect_request("keepalive@openssh.com")
    getattr(peer, answer)()
    assert alive.wait(TIMEOUT_S)


def test_paramiko_s_own_global_request_is_paired_in_the_same_order(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    ours = pool.submit(connection.request, "ours")
    peer.expect_request("ours")
    stock = pool.submit(peer.client.global_request, "stock", ("text", 5))
    fields = peer.expect_request("stock")
    assert (fields.text(), fields.u32()) == ("text", 5)
    peer.grant(b"1")
    peer.grant(u32(2))
    assert result(ours) == b"1"
    assert result(stock).get_int() == 2


# Packets.


def test_a_packet_without_a_message_is_an_error_that_says_so() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = rtunnel.Transport(theirs)
        client.start_client(event=threading.Event())
        # Length, then padding that takes all of it.
        ours.sendall(b"SSH-2.0-test\r\n" + bytes([0, 0, 0, 12, 11]) + bytes(11))
        wait_until(lambda: not client.is_active())
        error = client.get_exception()
    assert isinstance(error, ProtocolError)
    assert "bad padding" in str(error)


# Forwards.


def test_an_open_for_a_port_never_requested_is_rejected(
    peer: ScriptedPeer, connection: Connection
) -> None:
    peer.open_forwarded(8080)
    assert peer.expect_open_failure() == PROHIBITED


def listen(
    pool: ThreadPoolExecutor,
    connection: Connection,
    bind: Any,
    opens: list[ChannelOpen],
    **options: Any,
) -> tuple[Forward, Future[int]]:
    entry = forward(bind)
    return entry, pool.submit(connection.listen, entry, opens.append, **options)


def test_an_open_before_the_reply_is_offered_to_its_forward(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    opens: list[ChannelOpen] = []
    entry, listening = listen(pool, connection, 8080, opens)
    fields = peer.expect_request("tcpip-forward")
    assert (fields.text(), fields.u32()) == ("localhost", 8080)
    peer.open_forwarded(8080)
    wait_until(lambda: len(opens) == 1)
    assert opens[0].forward is entry
    assert opens[0].origin == ("192.0.2.1", 50000)
    peer.expect_nothing()  # undecided: neither confirmed nor refused
    opens[0].reject(CONNECT_FAILED, "dead")
    assert peer.expect_open_failure() == CONNECT_FAILED
    peer.grant()
    assert result(listening) == 8080


def test_an_early_open_waits_for_the_reply_that_names_the_port(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    opens: list[ChannelOpen] = []
    entry, listening = listen(pool, connection, 0, opens)
    peer.expect_request("tcpip-forward")
    peer.open_forwarded(4711)
    peer.expect_nothing()
    peer.grant(u32(4711))
    assert result(listening) == 4711
    wait_until(lambda: len(opens) == 1)
    assert opens[0].forward is entry


def test_an_early_open_for_another_port_is_rejected_after_the_reply(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 0, [])
    peer.expect_request("tcpip-forward")
    peer.open_forwarded(1)
    peer.expect_nothing()
    peer.grant(u32(4711))
    assert peer.expect_open_failure() == PROHIBITED
    result(listening)


def test_only_so_many_early_opens_wait(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    opens: list[ChannelOpen] = []
    _, listening = listen(pool, connection, 0, opens)
    peer.expect_request("tcpip-forward")
    for number in range(PARKED_OPENS + 1):
        peer.open_forwarded(4711, number=number)
    assert peer.expect_open_failure(PARKED_OPENS) == SHORTAGE
    peer.grant(u32(4711))
    result(listening)
    wait_until(lambda: len(opens) == PARKED_OPENS)


def test_an_open_during_the_cancel_still_belongs_to_the_forward(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    opens: list[ChannelOpen] = []
    entry, listening = listen(pool, connection, ("*", 0), opens)
    peer.expect_request("tcpip-forward")
    peer.grant(u32(4711))
    result(listening)
    cancelled = pool.submit(connection.cancel, entry)
    fields = peer.expect_request("cancel-tcpip-forward")
    assert (fields.text(), fields.u32()) == ("", 4711)
    peer.open_forwarded(4711)
    wait_until(lambda: len(opens) == 1)
    peer.grant()
    result(cancelled)
    peer.open_forwarded(4711, number=8)
    assert peer.expect_open_failure(8) == PROHIBITED


def test_what_is_granted_after_the_timeout_is_cancelled(
    peer: ScriptedPeer, connection: Connection
) -> None:
    with pytest.raises(RequestTimeout):
        connection.listen(forward(0), lambda pending: None, timeout_s=0.01)
    peer.expect_request("tcpip-forward")
    peer.grant(u32(4711))
    fields = peer.expect_request("cancel-tcpip-forward")
    assert (fields.text(), fields.u32()) == ("localhost", 4711)


def test_an_open_is_decided_once(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    opens: list[ChannelOpen] = []
    _, listening = listen(pool, connection, 8080, opens)
    peer.expect_request("tcpip-forward")
    peer.grant()
    result(listening)
    peer.open_forwarded(8080)
    wait_until(lambda: len(opens) == 1)
    opens[0].reject(CONNECT_FAILED, "dead")
    with pytest.raises(RuntimeError, match="before"):
        opens[0].reject(CONNECT_FAILED, "dead")


# Why a forward was refused.


def test_a_port_that_answers_over_there_is_in_use(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 8080, [])
    peer.expect_request("tcpip-forward")
    peer.refuse()
    fields = peer.expect(seams.MSG_CHANNEL_OPEN)
    assert fields.text() == "direct-tcpip"
    number = fields.u32()
    fields.u32(), fields.u32()
    assert (fields.text(), fields.u32()) == ("127.0.0.1", 8080)
    peer.send(91, u32(number) + u32(3) + u32(1000) + u32(1000))
    peer.expect(seams.MSG_CHANNEL_CLOSE)
    with pytest.raises(PortInUse, match="port 8080 is already in use on the server"):
        result(listening)


def refuse_probe(peer: ScriptedPeer) -> None:
    fields = peer.expect(seams.MSG_CHANNEL_OPEN)
    fields.text()
    failure = u32(fields.u32()) + u32(CONNECT_FAILED) + string("no") + string("")
    peer.send(seams.MSG_CHANNEL_OPEN_FAILURE, failure)


def test_a_low_port_is_for_root_only(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 80, [])
    peer.expect_request("tcpip-forward")
    peer.refuse()
    refuse_probe(peer)
    with pytest.raises(ForwardingDenied, match="only root listen there, not anybody"):
        result(listening)


def test_a_port_is_taken_when_the_server_would_grant_any_other(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 8080, [])
    peer.expect_request("tcpip-forward")
    peer.refuse()
    refuse_probe(peer)
    peer.expect_request("tcpip-forward")
    peer.grant(u32(4711))
    peer.expect_request("cancel-tcpip-forward")
    peer.grant()
    with pytest.raises(PortInUse, match="port 8080 is taken"):
        result(listening)


def test_forwarding_is_denied_when_the_server_grants_no_port_at_all(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 8080, [])
    peer.expect_request("tcpip-forward")
    peer.refuse()
    refuse_probe(peer)
    peer.expect_request("tcpip-forward")
    peer.refuse()
    with pytest.raises(ForwardingDenied, match="AllowTcpForwarding"):
        result(listening)


def test_what_the_server_says_in_a_debug_message_is_believed(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 8080, [])
    peer.expect_request("tcpip-forward")
    peer.debug("Server has disabled port forwarding.")
    peer.refuse()
    with pytest.raises(ForwardingDenied, match='"Server has disabled port forw'):
        result(listening)
    peer.expect_nothing()


def test_a_refused_forward_leaves_nothing_behind(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    _, listening = listen(pool, connection, 8080, [], diagnose=False)
    peer.expect_request("tcpip-forward")
    peer.refuse()
    with pytest.raises(ForwardRefused):
        result(listening)
    peer.open_forwarded(8080)
    assert peer.expect_open_failure() == PROHIBITED


# Channels of ours.


def test_a_channel_of_any_type_can_be_opened(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        opening = pool.submit(connection.open, "thing@example", b"details", ours)
        fields = peer.expect(seams.MSG_CHANNEL_OPEN)
        assert fields.text() == "thing@example"
        number = fields.u32()
        assert (fields.u32(), fields.u32()) == (2**21, 2**15)
        assert fields.rest() == b"details"
        peer.send(91, u32(number) + u32(3) + u32(1000) + u32(1000))
        assert result(opening).remote_id == 3
        peer.send(seams.MSG_CHANNEL_DATA, u32(number) + string(b"hello"))
        assert theirs.recv(100) == b"hello"


def test_a_refused_channel_tells_code_and_text(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        opening = pool.submit(connection.open, "thing@example", b"", ours)
        refuse_probe(peer)
        with pytest.raises(ChannelOpenError, match=r"no \(CONNECT_FAILED\)") as caught:
            result(opening)
        assert caught.value.code == CONNECT_FAILED
        assert theirs.recv(1) == b""


def test_a_channel_that_is_confirmed_too_late_is_closed(
    peer: ScriptedPeer, connection: Connection
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(RequestTimeout):
            connection.open("thing@example", b"", ours, timeout_s=0.01)
        fields = peer.expect(seams.MSG_CHANNEL_OPEN)
        fields.text()
        peer.send(91, u32(fields.u32()) + u32(3) + u32(1000) + u32(1000))
        assert peer.expect(seams.MSG_CHANNEL_CLOSE).u32() == 3


def test_paramiko_s_own_channels_go_on_beside_ours(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    opening = pool.submit(peer.client.open_session)
    fields = peer.expect(seams.MSG_CHANNEL_OPEN)
    assert fields.text() == "session"
    number = fields.u32()
    peer.send(91, u32(number) + u32(3) + u32(1000) + u32(32768))
    channel = result(opening)
    peer.send(seams.MSG_CHANNEL_DATA, u32(number) + string(b"hello"))
    channel.settimeout(TIMEOUT_S)
    assert channel.recv(100) == b"hello"
    channel.sendall(b"world")
    assert peer.expect(seams.MSG_CHANNEL_DATA).u32() == 3


# The protocol is enforced.


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (seams.MSG_CHANNEL_OPEN, string("forwarded-tcpip") + u32(1)),
        (seams.MSG_CHANNEL_OPEN, u32(1000) + b"short"),
        (
            seams.MSG_CHANNEL_OPEN,
            string("forwarded-tcpip") + u32(1) + u32(9) + u32(0) + bytes(50),
        ),
        (seams.MSG_CHANNEL_OPEN_CONFIRMATION, b"\0"),
        (seams.MSG_CHANNEL_OPEN_FAILURE, b""),
    ],
    ids=["open cut short", "no kind", "packets of 0 bytes", "confirmation", "failure"],
)
def test_a_broken_message_ends_the_connection_with_protocol_error(
    peer: ScriptedPeer, connection: Connection, kind: int, payload: bytes
) -> None:
    peer.send(kind, payload)
    wait_until(lambda: connection.end is not None)
    wait_until(lambda: peer.disconnect is not None)
    assert connection.end is not None
    assert connection.end.code == 2
    assert peer.disconnect is not None
    assert peer.disconnect[0] == 2


def test_the_server_s_reason_for_a_disconnect_is_told(
    peer: ScriptedPeer, connection: Connection
) -> None:
    peer.send(1, u32(12) + string("too many of you") + string(""))
    wait_until(lambda: connection.end is not None)
    assert str(connection.end) == "the server ended the connection: too many of you"
    assert connection.end is not None
    assert connection.end.code == 12
    assert not connection.closed_here


def test_closing_the_transport_is_told_from_losing_it(
    peer: ScriptedPeer, connection: Connection
) -> None:
    ends: list[ConnectionLost] = []
    connection.add_end_callback(ends.append)
    peer.client.close()
    assert connection.closed_here
    connection.add_end_callback(ends.append)
    assert [str(end) for end in ends] == ["the connection was closed by this side"] * 2


def test_a_peer_that_hangs_up_at_our_goodbye_has_not_ended_the_connection() -> None:
    with ScriptedPeer(rtunnel.Transport) as peer:
        connection = Connection.of(peer.client)
        # close() is slow to go on, the peer is not.
        peer.client.packetizer.drain = lambda: wait_until(
            lambda: connection.end is not None
        )
        peer.client.close()
        assert str(connection.end) == "the connection was closed by this side"
        assert connection.closed_here


# One connection per transport.


def test_a_transport_has_one_connection_and_one_backend(
    peer: ScriptedPeer, connection: Connection
) -> None:
    assert Connection.of(peer.client) is connection
    assert Connection.of(peer.client, "auto") is connection
    with pytest.raises(BackendUnavailable, match="runs on 'python' already"):
        Connection.of(peer.client, "engine")


def test_the_engine_does_not_run_on_a_stock_transport(peer: ScriptedPeer) -> None:
    with pytest.raises(BackendUnavailable, match=r"not an rtunnel\.Transport"):
        Connection.of(peer.client, "engine")


def test_a_transport_that_is_not_connected_is_refused() -> None:
    with ScriptedPeer() as peer:
        peer.client.close()
        with pytest.raises(ConnectionLost, match="connect and authenticate"):
            Connection.of(peer.client)


def test_the_environment_names_a_backend_and_an_argument_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RTUNNEL_BACKEND", "python")
    with ScriptedPeer() as peer:
        connection = Connection.of(peer.client)
        assert connection.backend.name == "python"
        assert "RTUNNEL_BACKEND" in connection.backend_reason
    with ScriptedPeer() as peer:
        assert Connection.of(peer.client, "pump").backend.name == "pump"
    monkeypatch.setenv("RTUNNEL_BACKEND", "turbo")
    with ScriptedPeer() as peer, pytest.raises(BackendUnavailable, match="turbo"):
        Connection.of(peer.client)


# paramiko's own forwards.


def test_paramiko_s_request_port_forward_has_a_handler_per_port(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    calls: list[tuple[str, object, threading.Thread]] = []

    def request(name: str, port: int) -> None:
        def handler(channel: Any, origin: Any, bound: Any) -> None:
            calls.append((name, bound, threading.current_thread()))
            channel.close()

        asked = pool.submit(peer.client.request_port_forward, "", port, handler)
        fields = peer.expect_request("tcpip-forward")
        assert (fields.text(), fields.u32()) == ("", port)
        peer.grant()
        assert result(asked) == port

    request("one", 1001)
    request("two", 1002)
    for port in (1001, 1002):
        peer.open_forwarded(port, "", number=port)
        peer.expect_confirmation(port)
        peer.expect(seams.MSG_CHANNEL_EOF)
        peer.expect(seams.MSG_CHANNEL_CLOSE)
    assert [call[:2] for call in calls] == [("one", ("", 1001)), ("two", ("", 1002))]
    assert all(thread is not peer.client for _, _, thread in calls)

    cancelled = pool.submit(peer.client.cancel_port_forward, "", 1001)
    peer.expect_request("cancel-tcpip-forward")
    peer.grant()
    result(cancelled)
    peer.open_forwarded(1001, "", number=1)
    assert peer.expect_open_failure(1) == PROHIBITED
    peer.open_forwarded(1002, "", number=2)
    peer.expect_confirmation(2)


def test_paramiko_s_accept_gets_channels_of_ports_without_handler(
    peer: ScriptedPeer, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    asked = pool.submit(peer.client.request_port_forward, "", 0)
    peer.expect_request("tcpip-forward")
    peer.grant(u32(4711))
    assert result(asked) == 4711
    peer.open_forwarded(4711, "")
    number = peer.expect_confirmation()
    channel = peer.client.accept(TIMEOUT_S)
    assert channel is not None
    assert (channel.chanid, channel.origin_addr) == (number, ("192.0.2.1", 50000))


def test_a_request_of_the_server_with_reply_is_still_answered_by_paramiko(
    peer: ScriptedPeer, connection: Connection
) -> None:
    kind = string("hostkeys-00@openssh.com") + boolean(True)
    peer.send(seams.MSG_GLOBAL_REQUEST, kind)
    peer.expect(seams.MSG_REQUEST_FAILURE)
