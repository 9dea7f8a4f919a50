"""A peer that sends what belongs to no channel, no open and no request of ours."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtunnel.addresses import parse_bind
from rtunnel.errors import ConnectionLost, RequestTimeout
from rtunnel.forwards import Forward
from rtunnel.ssh import connection as connection_module
from rtunnel.ssh import seams
from rtunnel.ssh.connection import Connection
from rtunnel.wire import boolean, string, u32
from tests.support.hostile import PORT, HostileServer, Served, nothing_left
from tests.support.sshd import wait_until
from tests.support.tunnels import read_all

PROHIBITED, SHORTAGE = 1, 4
NUMBERS = (0, 1, 12345, 0x40000001, 0x400FFFFF, 0x7FFFFFFF, 2**32 - 1)
FIELDS = {
    seams.MSG_CHANNEL_OPEN_CONFIRMATION: u32(5) + u32(2**21) + u32(2**15),
    seams.MSG_CHANNEL_OPEN_FAILURE: u32(1) + string("no") + string(""),
    seams.MSG_CHANNEL_WINDOW_ADJUST: u32(1000),
    seams.MSG_CHANNEL_DATA: string(b"data"),
    seams.MSG_CHANNEL_EXTENDED_DATA: u32(1) + string(b"data"),
    seams.MSG_CHANNEL_EOF: b"",
    seams.MSG_CHANNEL_CLOSE: b"",
    seams.MSG_CHANNEL_REQUEST: string("exit-status") + boolean(True) + u32(0),
    seams.MSG_CHANNEL_SUCCESS: b"",
    seams.MSG_CHANNEL_FAILURE: b"",
}


@pytest.fixture
def served(backend: str) -> Iterator[Served]:
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        yield it


# Channels that are not there.


def test_messages_for_channels_that_never_were_are_dropped(served: Served) -> None:
    channels = served.channels()
    for kind, number in itertools.product(FIELDS, NUMBERS):
        if number != served.other:
            served.peer.say(kind, u32(number) + FIELDS[kind])
    served.settle()
    assert served.drain() == []
    served.check_goes_on()
    assert served.channels() == channels


def test_messages_for_a_channel_that_is_closed_are_dropped(served: Served) -> None:
    channels = served.channels()
    channel, conn = served.open(9)
    with conn:
        served.peer.say(seams.MSG_CHANNEL_CLOSE, u32(channel))
        assert served.peer.expect(seams.MSG_CHANNEL_CLOSE).u32() == 9
        for kind, fields in FIELDS.items():
            served.peer.say(kind, u32(channel) + fields)
        served.settle()
        assert served.drain() == []
    served.check_goes_on()
    assert served.channels() == channels


def test_an_open_that_was_refused_leaves_nothing_behind(served: Served) -> None:
    channels = served.channels()
    for _ in range(200):
        served.peer.open_forwarded(PORT + 1)
        assert served.peer.expect_open_failure() == PROHIBITED
    assert served.channels() == channels
    assert Connection.of(served.peer.client)._undecided == 0
    served.check_goes_on()


# Answers to what nobody asked.


@pytest.mark.parametrize(
    "kind",
    [
        seams.MSG_CHANNEL_OPEN_CONFIRMATION,
        seams.MSG_CHANNEL_OPEN_FAILURE,
        seams.MSG_CHANNEL_SUCCESS,
        seams.MSG_CHANNEL_FAILURE,
    ],
)
def test_answers_on_a_channel_that_stands_change_nothing(
    served: Served, kind: int
) -> None:
    for _ in range(3):
        served.peer.say(kind, u32(served.other) + FIELDS[kind])
    served.check_goes_on()
    assert served.peer.client.get_exception() is None


@pytest.mark.parametrize(
    "kind", [seams.MSG_CHANNEL_OPEN_CONFIRMATION, seams.MSG_CHANNEL_OPEN_FAILURE]
)
def test_a_second_answer_to_the_open_of_a_session_changes_nothing(
    served: Served, kind: int
) -> None:
    number, channel = served.peer.open_session()
    served.peer.say(kind, u32(number) + FIELDS[kind])
    served.settle()
    channel.sendall(b"to the right one")
    fields = served.peer.expect(seams.MSG_CHANNEL_DATA)
    assert (fields.u32(), fields.string()) == (3, b"to the right one")
    assert served.peer.client.get_exception() is None
    served.check_goes_on()


@pytest.mark.parametrize("kind", [seams.MSG_CHANNEL_SUCCESS, seams.MSG_CHANNEL_FAILURE])
def test_a_reply_to_no_request_on_a_session_changes_nothing(
    served: Served, kind: int
) -> None:
    number, channel = served.peer.open_session()
    with ThreadPoolExecutor(1) as pool:
        served.peer.say(kind, u32(number))
        served.settle()
        asked = pool.submit(channel.exec_command, "true")
        assert served.peer.expect(seams.MSG_CHANNEL_REQUEST).u32() == 3
        served.peer.say(seams.MSG_CHANNEL_SUCCESS, u32(number))
        asked.result(20)
        served.peer.say(kind, u32(number))
        served.settle()
    channel.sendall(b"as before")
    fields = served.peer.expect(seams.MSG_CHANNEL_DATA)
    assert (fields.u32(), fields.string()) == (3, b"as before")
    served.check_goes_on()


def test_data_behind_the_end_of_a_session_is_dropped(served: Served) -> None:
    number, channel = served.peer.open_session()
    for piece in (b"the rest", b"too late"):
        served.peer.say(DATA, u32(number) + string(piece))
        served.peer.say(EOF, u32(number))
    served.settle()
    assert read_all(channel) == b"the rest"
    served.check_goes_on()


def test_replies_to_no_request_are_dropped_by_the_thousand(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for _ in range(1000):
        served.peer.grant(u32(4711))
        served.peer.refuse()
    served.check_goes_on()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(Connection.of(served.peer.client).request, "question")
        served.peer.expect_request("question")
        served.peer.grant(b"answer")
        assert asked.result(20) == b"answer"


def test_a_reply_that_never_comes_is_a_timeout_and_the_rest_goes_on(
    served: Served,
) -> None:
    connection = Connection.of(served.peer.client)
    with pytest.raises(RequestTimeout, match="did not answer"):
        connection.request("question", timeout_s=0.05)
    with pytest.raises(RequestTimeout, match="did not answer"):
        connection.listen(
            Forward(parse_bind(PORT + 7)), lambda pending: None, 0.05, diagnose=False
        )
    for _ in range(2):
        served.peer.expect(seams.MSG_GLOBAL_REQUEST)
    served.check_goes_on()


# Opens.


def test_an_open_for_a_port_that_was_cancelled_is_refused(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(served.listener.close)
        served.peer.expect_request("cancel-tcpip-forward")
        served.peer.grant()
        closing.result(20)
    served.peer.open_forwarded(PORT, number=9)
    answers = served.said_until(seams.MSG_CHANNEL_OPEN_FAILURE, 9)
    assert answers[-1][1].u32() == PROHIBITED


@pytest.mark.parametrize("kind", ["session", "direct-tcpip", "x11", "auth-agent", ""])
def test_a_server_opens_no_other_channels_here(served: Served, kind: str) -> None:
    channels = served.channels()
    served.peer.say(
        seams.MSG_CHANNEL_OPEN,
        string(kind) + u32(9) + u32(2**21) + u32(2**15) + string("h") + u32(1) * 3,
    )
    assert served.peer.expect_open_failure(9) == PROHIBITED
    assert served.channels() == channels
    served.check_goes_on()


def test_only_so_many_opens_are_undecided(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connection_module.UNDECIDED_OPENS_MAX == 4096
    monkeypatch.setattr(connection_module, "UNDECIDED_OPENS_MAX", 50)
    with nothing_left(), HostileServer(backend) as peer:
        connection = Connection.of(peer.client, backend)
        opens = []
        with ThreadPoolExecutor(1) as pool:
            forward = Forward(parse_bind(PORT))
            listening = pool.submit(connection.listen, forward, opens.append)
            peer.expect_request("tcpip-forward")
            peer.grant()
            listening.result(20)
        for number in range(60):
            peer.open_forwarded(PORT, number=number)
        for number in range(50, 60):
            assert peer.expect_open_failure(number) == SHORTAGE
        assert len(opens) == 50
        opens[0].reject(2, "dead")
        assert peer.expect_open_failure(0) == 2
        peer.open_forwarded(PORT, number=99)
        wait_until(lambda: len(opens) == 51)


# Ends, in every order and twice.

DATA, EOF, CLOSE = (
    seams.MSG_CHANNEL_DATA,
    seams.MSG_CHANNEL_EOF,
    seams.MSG_CHANNEL_CLOSE,
)


@pytest.mark.parametrize(
    "order", [o for o in itertools.product((DATA, EOF, CLOSE), repeat=3) if CLOSE in o]
)
def test_data_eof_and_close_in_every_order_end_a_channel_once(
    served: Served, order: tuple[int, ...]
) -> None:
    channels = served.channels()
    channel, conn = served.open(9)
    with conn:
        expected = b""
        for kind in order:
            served.peer.say(kind, u32(channel) + FIELDS[kind])
        for kind in order:  # what came before the first end is delivered
            if kind != DATA:
                break
            expected += b"data"
        assert read_all(conn) == expected
    said = [kind for kind, _ in served.said_until(CLOSE, 9)]
    assert said.count(EOF) <= 1
    wait_until(lambda: served.channels() == channels)
    served.settle()
    assert served.drain() == []  # nothing may follow CLOSE
    served.check_goes_on()


# Requests on forwarded channels.


@pytest.mark.parametrize(
    "kind",
    ["exec", "shell", "pty-req", "env", "exit-status", "signal", "x@y", "\udcff", ""],
)
def test_requests_on_a_forwarded_channel_are_refused(served: Served, kind: str) -> None:
    for wants_reply in (False, True):
        fields = string(kind) + boolean(wants_reply) + string("rm -rf /")
        served.peer.say(seams.MSG_CHANNEL_REQUEST, u32(served.other) + fields)
    assert served.peer.expect(seams.MSG_CHANNEL_FAILURE).u32() == 1
    served.settle()
    assert served.drain() == []
    served.check_goes_on()


def test_an_unsolicited_disconnect_is_told_in_one_line(served: Served) -> None:
    served.peer.say(seams.MSG_DISCONNECT, u32(11) + string("go\naway") + string(""))
    with pytest.raises(ConnectionLost) as caught:
        served.tunnel.wait(20)
    assert "go" in str(caught.value)
    assert "\n" not in str(caught.value)
