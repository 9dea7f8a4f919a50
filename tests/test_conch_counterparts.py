"""What Twisted Conch's SSHConnection names, by the names it has here.

docs/conch-api.md is the table; each of its rows names the test that shows it.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.message import Message

from rtunnel import Tunnel
from rtunnel.addresses import TcpBind
from rtunnel.errors import (
    ChannelOpenError,
    ConnectionLost,
    OpenFailureCode,
    RequestRefused,
    RequestTimeout,
)
from rtunnel.forwards import Forward
from rtunnel.ssh.arrivals import ChannelOpen
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.relay import Relay, RelayEnd
from rtunnel.window import RECEIVE_WINDOW_BYTES
from rtunnel.wire import string, u32
from tests.support.pair import Host, Pair, accepted, connected_pair
from tests.support.sshd import wait_until
from tests.support.tunnels import TIMEOUT_S, background, noise, read_all, read_exactly

TABLE = Path(__file__).parent.parent / "docs" / "conch-api.md"

NAMES = {
    *("_cbChannelRequest", "_cleanupGlobalDeferreds", "_ebChannelRequest"),
    *("adjustWindow", "channelClosed", "channels", "channelsToRemoteChannel"),
    *("deferreds", "getChannel", "gotGlobalRequest", "localChannelID"),
    *("localToRemoteChannel", "openChannel", "sendClose", "sendData", "sendEOF"),
    *("sendExtendedData", "sendGlobalRequest", "sendRequest", "serviceStarted"),
    *("serviceStopped", "ssh_CHANNEL_CLOSE", "ssh_CHANNEL_DATA", "ssh_CHANNEL_EOF"),
    *("ssh_CHANNEL_EXTENDED_DATA", "ssh_CHANNEL_FAILURE", "ssh_CHANNEL_OPEN"),
    *("ssh_CHANNEL_OPEN_CONFIRMATION", "ssh_CHANNEL_OPEN_FAILURE"),
    *("ssh_CHANNEL_REQUEST", "ssh_CHANNEL_SUCCESS", "ssh_CHANNEL_WINDOW_ADJUST"),
    *("ssh_GLOBAL_REQUEST", "ssh_REQUEST_FAILURE", "ssh_REQUEST_SUCCESS"),
    "transport",
}

PARCEL = "parcel@example.com"


def test_the_table_has_a_row_and_a_test_for_every_name() -> None:
    rows = re.findall(r"^\| `(\w+)` .*\| `(test_\w+)` \|$", TABLE.read_text(), re.M)
    assert {name for name, _ in rows} == NAMES
    assert [test for _, test in rows if test not in globals()] == []


class SlowHost(Host):
    """Answers the request "slow@example.com", and what follows, when `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def check_global_request(self, kind: str, msg: Message) -> bool | tuple[Any, ...]:
        if kind != "slow@example.com":
            return super().check_global_request(kind, msg)
        self.asked.append((kind,))
        return self.go_on.wait(TIMEOUT_S)


class Ends:
    """Takes the end of a relay."""

    def __init__(self) -> None:
        self._ends: queue.Queue[RelayEnd] = queue.Queue()
        self.take: Callable[[RelayEnd], None] = self._ends.put

    def wait(self) -> RelayEnd:
        return self._ends.get(timeout=TIMEOUT_S)


def open_parcel(pair: Pair) -> tuple[Relay, socket.socket, paramiko.Channel, Ends]:
    """Open a pumped channel; return it, our socket, the peer's channel, its end."""
    ours, pumped = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    ends = Ends()
    relay = Connection.of(pair.client).open(PARCEL, b"to go", pumped, ends.take)
    far = accepted(pair.server)
    far.settimeout(TIMEOUT_S)
    return relay, ours, far, ends


# The service.


def test_the_service_starts_on_a_connected_transport() -> None:
    with connected_pair() as pair:
        tunnel = Tunnel(pair.client)
        assert tunnel.connection is Connection.of(pair.client)
        assert tunnel.connection.transport is pair.client
        assert tunnel.backend == "engine"
        assert tunnel.connection.end is None
    with pytest.raises(ConnectionLost):
        Connection.of(pair.server)


def test_the_end_is_told_once() -> None:
    told: list[ConnectionLost] = []
    with connected_pair() as pair:
        connection = Connection.of(pair.client)
        connection.add_end_callback(told.append)
        pair.server.close()
        wait_until(lambda: told)
        pair.client.close()
        assert len(told) == 1
        assert connection.end is told[0]
        connection.add_end_callback(told.append)
        assert told == [connection.end] * 2


def test_what_waits_is_failed_when_the_connection_ends() -> None:
    host = SlowHost()
    with connected_pair(host) as pair, ThreadPoolExecutor() as pool:
        connection = Connection.of(pair.client)
        session, _ = pair.open_session()
        ours, pumped = socket.socketpair()
        waiting = [pool.submit(connection.request, "slow@example.com")]
        wait_until(lambda: host.asked)
        waiting += [
            pool.submit(connection.request, "second@example.com"),
            pool.submit(connection.open, PARCEL, b"", pumped),
            pool.submit(connection.listen, Forward(TcpBind("", 80)), print),
        ]
        stock = pool.submit(pair.client.global_request, "third@example.com")
        command = pool.submit(session.exec_command, "do it")
        pair.server.sock.shutdown(socket.SHUT_RDWR)
        for future in waiting:
            assert isinstance(future.exception(TIMEOUT_S), ConnectionLost)
        assert stock.result(TIMEOUT_S) is None
        # paramiko raises what ended the transport.
        assert isinstance(
            command.exception(TIMEOUT_S), paramiko.SSHException | EOFError
        )
        assert ours.recv(1) == b""
        with pytest.raises(ConnectionLost):
            connection.request("late@example.com")
        host.go_on.set()
        ours.close()


def test_what_comes_while_the_connection_breaks_is_failed_too() -> None:
    host = SlowHost()
    with connected_pair(host) as pair, ThreadPoolExecutor() as pool:
        connection = Connection.of(pair.client)
        waiting = [pool.submit(connection.request, "slow@example.com")]
        wait_until(lambda: host.asked)
        # Sending fails from here on; nobody is told before the server takes part.
        pair.client.sock.shutdown(socket.SHUT_WR)
        for _ in range(3):
            connection.notify("yes@example.com")
        waiting.append(pool.submit(connection.request, "yes@example.com"))
        host.go_on.set()
        for future in waiting:
            assert isinstance(future.exception(TIMEOUT_S), ConnectionLost | None)
        assert isinstance(waiting[1].exception(), ConnectionLost)


# Global requests.


def test_global_requests_get_their_own_replies() -> None:
    host = SlowHost()
    with connected_pair(host) as pair, ThreadPoolExecutor(16) as pool:
        connection = Connection.of(pair.client)

        def twice(number: int) -> bytes:
            return connection.request("twice@example.com", u32(number))

        assert list(pool.map(twice, range(200))) == [u32(2 * n) for n in range(200)]
        with pytest.raises(RequestRefused):
            connection.request("no@example.com")
        with pytest.raises(RequestTimeout):
            connection.request("slow@example.com", timeout_s=0.01)
        later = pool.submit(twice, 4)
        host.go_on.set()
        assert later.result(TIMEOUT_S) == u32(8)
        connection.notify("yes@example.com")
        assert twice(5) == u32(10)
        assert host.asked == [("slow@example.com",), ("yes@example.com",)]


def test_global_requests_of_the_peer_are_answered() -> None:
    with connected_pair() as pair:
        # A client is asked, and refuses what it does not know.
        with pytest.raises(RequestRefused):
            Connection.of(pair.server).request("yes@example.com")
        assert Connection.of(pair.client).request("yes@example.com") == b""
        assert pair.client.request_port_forward("", 80, print) == 80
        assert pair.host.asked == [("yes@example.com",), ("listen", "", 80)]


# Channels.


def test_a_channel_of_any_type_is_opened() -> None:
    with connected_pair() as pair:
        _relay, ours, far, _ends = open_parcel(pair)
        ours.sendall(b"pumped")
        assert read_exactly(far, 6) == b"pumped"
        ours.close()
        near = pair.client.open_channel(PARCEL)
        near.sendall(b"in Python")
        assert read_exactly(accepted(pair.server), 9) == b"in Python"


def test_a_channel_that_is_refused_says_why() -> None:
    with connected_pair() as pair:
        ours, pumped = socket.socketpair()
        with pytest.raises(ChannelOpenError) as caught:
            Connection.of(pair.client).open("other@example.com", b"", pumped)
        assert caught.value.code == OpenFailureCode.UNKNOWN_CHANNEL_TYPE
        with ours:
            assert ours.recv(1) == b""
        with pytest.raises(paramiko.ChannelException) as refused:
            pair.client.open_channel("other@example.com")
        assert refused.value.code == OpenFailureCode.UNKNOWN_CHANNEL_TYPE


def test_channels_of_the_peer_are_decided_upon() -> None:
    arrived: queue.Queue[ChannelOpen] = queue.Queue()
    with connected_pair() as pair, ThreadPoolExecutor() as pool:
        near_end = Connection.of(pair.client)
        near_end.listen(Forward(TcpBind("", 80)), arrived.put)
        payload = string("") + u32(80) + string("192.0.2.1") + u32(50_000)

        visitor, pumped = socket.socketpair()
        far_end = Connection.of(pair.server)
        visit = pool.submit(far_end.open, "forwarded-tcpip", payload, pumped)
        pending = arrived.get(timeout=TIMEOUT_S)
        assert pending.origin == ("192.0.2.1", 50_000)
        assert not visit.done()
        local, pumped = socket.socketpair()
        pending.accept(pumped)
        visit.result(TIMEOUT_S)
        with visitor, local:
            local.settimeout(TIMEOUT_S)
            visitor.sendall(b"ping")
            assert read_exactly(local, 4) == b"ping"

        visitor, pumped = socket.socketpair()
        visit = pool.submit(far_end.open, "forwarded-tcpip", payload, pumped)
        arrived.get(timeout=TIMEOUT_S).reject(OpenFailureCode.CONNECT_FAILED, "closed")
        error = visit.exception(TIMEOUT_S)
        assert isinstance(error, ChannelOpenError)
        assert error.code == OpenFailureCode.CONNECT_FAILED
        assert "closed" in str(error)
        with visitor:
            assert visitor.recv(1) == b""


def test_channels_have_their_numbers() -> None:
    with connected_pair() as pair:
        relay, ours, far, _ends = open_parcel(pair)
        near, far_session = pair.open_session()
        assert (relay.local_id, relay.remote_id) == (far.remote_chanid, far.get_id())
        assert near.get_id() == far_session.remote_chanid
        assert near.remote_chanid == far_session.get_id()
        assert relay.local_id != near.get_id()
        ours.close()


# Requests on a channel.


def test_requests_on_a_channel_are_granted_or_refused() -> None:
    with connected_pair() as pair:
        near, _far = pair.open_session()
        pair.client.channel_request(near, "exec", string("do it"))
        near.set_environment_variable("LANG", "C")
        pair.client.channel_request(near, "signal", string("TERM"), wait=False)
        assert not near.closed
        with pytest.raises(paramiko.SSHException):
            near.exec_command("refuse me")
        assert near.closed
        assert pair.host.asked[0] == ("exec", b"do it")


def test_requests_of_the_peer_on_a_channel_are_answered() -> None:
    with connected_pair() as pair:
        near, far = pair.open_session()
        near.exec_command("do it")
        assert pair.host.asked == [("exec", b"do it")]
        far.send_exit_status(7)
        assert near.recv_exit_status() == 7
        # A pumped channel knows no requests, and goes on.
        _relay, ours, far, _ends = open_parcel(pair)
        far.send_exit_status(7)
        pair.server.channel_request(far, "quiet@example.com", wait=False)
        far.sendall(b"after it")
        assert read_exactly(ours, 8) == b"after it"
        with pytest.raises(paramiko.SSHException):
            pair.server.channel_request(far, "loud@example.com")
        ours.close()


# Data.


def test_data_goes_both_ways() -> None:
    content = noise(3 * RECEIVE_WINDOW_BYTES)
    with connected_pair() as pair:
        relay, ours, far, _ends = open_parcel(pair)
        with background(read_exactly, far, len(content)) as received:
            ours.sendall(content)
        assert received == [content]
        with background(far.sendall, content):
            assert read_exactly(ours, len(content)) == content
        assert relay.bytes_in == relay.bytes_out == len(content)
        ours.close()


def test_extended_data_is_received_or_dropped() -> None:
    complaint = noise(2 * RECEIVE_WINDOW_BYTES)
    with connected_pair() as pair:
        near, far = pair.open_session()
        near.settimeout(TIMEOUT_S)
        far.sendall_stderr(b"complaint")
        assert near.recv_stderr(100) == b"complaint"
        _relay, ours, far, _ends = open_parcel(pair)
        # More than the window: it would stall if it were not given back.
        far.sendall_stderr(complaint)
        far.sendall(b"data")
        assert read_exactly(ours, 4) == b"data"
        ours.close()


def test_windows_open_as_data_is_taken() -> None:
    content = noise(4 * RECEIVE_WINDOW_BYTES)
    with connected_pair() as pair:
        _relay, slow, far, _ends = open_parcel(pair)
        _relay, other, other_far, _ends = open_parcel(pair)
        with background(far.sendall, content):
            # Nobody reads `slow`: its sender comes to stand still, nobody else does.
            wait_until(lambda: not far.send_ready())
            other_far.sendall(b"not mine")
            assert read_exactly(other, 8) == b"not mine"
            assert read_exactly(slow, len(content)) == content
        with background(slow.sendall, content):
            other.sendall(b"nor mine")
            assert read_exactly(other_far, 8) == b"nor mine"
            assert read_exactly(far, len(content)) == content
        slow.close()
        other.close()


# The ends of a channel.


def test_the_end_of_one_direction_leaves_the_other() -> None:
    with connected_pair() as pair:
        _relay, ours, far, ends = open_parcel(pair)
        ours.sendall(b"question")
        ours.shutdown(socket.SHUT_WR)
        assert read_all(far) == b"question"
        far.sendall(b"answer")
        far.shutdown_write()
        assert read_all(ours) == b"answer"
        ours.close()
        assert ends.wait() == RelayEnd(len("answer"), len("question"), "closed")


def test_a_closed_channel_is_told_to_both_sides() -> None:
    with connected_pair() as pair:
        relay, ours, far, ends = open_parcel(pair)
        far.close()
        assert read_all(ours) == b""
        ours.close()
        assert ends.wait().reason == "closed"
        assert relay.ended
        relay, ours, far, ends = open_parcel(pair)
        relay.reset()
        assert ends.wait().reason == "reset"
        assert read_all(far) == b""
        wait_until(lambda: far.closed)
        ours.close()
        near, far = pair.open_session()
        near.close()
        wait_until(lambda: far.closed)
