"""A peer that cheats with windows and packets: it is cut off, and nobody else is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paramiko
import pytest

from rtunnel.ssh import seams
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from rtunnel.wire import string, u32
from tests.support.hostile import (
    PORT,
    HostileServer,
    Served,
    bounded_memory,
    nothing_left,
)
from tests.support.tunnels import read_exactly

PROTOCOL_ERROR = 2


@pytest.fixture
def served(backend: str) -> Iterator[Served]:
    with (
        nothing_left(),
        HostileServer(backend) as peer,
        Served(peer, backend) as served,
    ):
        yield served


def test_data_over_the_window_ends_the_connection(served: Served) -> None:
    channel, conn = served.open(7)  # nobody reads `conn`
    with conn, bounded_memory():
        with contextlib.suppress(EOFError):  # when the connection is gone
            for _ in range(2**26 // MAX_PACKET_BYTES):
                served.data(channel, bytes(MAX_PACKET_BYTES))
        served.expect_end(PROTOCOL_ERROR, "window")


@pytest.mark.parametrize("kind", ["data", "extended"])
def test_a_packet_over_the_maximum_ends_the_connection(
    served: Served, kind: str
) -> None:
    data = string(bytes(MAX_PACKET_BYTES + 1))
    if kind == "data":
        served.peer.say(seams.MSG_CHANNEL_DATA, u32(served.other) + data)
    else:
        extended = u32(served.other) + u32(1) + data
        served.peer.say(seams.MSG_CHANNEL_EXTENDED_DATA, extended)
    served.expect_end(PROTOCOL_ERROR, "maximum packet")


def test_adjusts_over_32_bits_end_the_connection(served: Served) -> None:
    adjust = u32(served.other) + u32(2**32 - 1)
    served.peer.say(seams.MSG_CHANNEL_WINDOW_ADJUST, adjust)
    served.expect_end(PROTOCOL_ERROR, "2^32")


def test_adjusts_up_to_32_bits_are_fine(served: Served) -> None:
    adjust = u32(served.other) + u32(2**32 - 1 - 2**21)
    served.peer.say(seams.MSG_CHANNEL_WINDOW_ADJUST, adjust)
    served.check_goes_on()


def test_a_channel_whose_packets_may_hold_nothing_ends_the_connection(
    served: Served,
) -> None:
    served.peer.open_forwarded(PORT, number=9, max_packet=0)
    served.expect_end(PROTOCOL_ERROR, "0 bytes at most")


def test_packets_of_one_byte_are_kept_to(served: Served) -> None:
    _, conn = served.open(9, window=100, max_packet=1)
    with conn:
        conn.sendall(b"abc")
        pieces = [served.peer.expect(seams.MSG_CHANNEL_DATA) for _ in range(3)]
        assert [(piece.u32(), piece.string()) for piece in pieces] == [
            (9, b"a"),
            (9, b"b"),
            (9, b"c"),
        ]
    served.check_goes_on()


def test_a_window_of_nothing_is_kept_to_until_there_is_credit(served: Served) -> None:
    channel, conn = served.open(9, window=0)
    with conn:
        conn.sendall(b"abc")
        served.check_goes_on()
        for _ in range(2):
            served.peer.say(seams.MSG_CHANNEL_WINDOW_ADJUST, u32(channel) + u32(0))
        served.settle()
        assert served.drain() == []
        served.peer.say(seams.MSG_CHANNEL_WINDOW_ADJUST, u32(channel) + u32(2))
        fields = served.peer.expect(seams.MSG_CHANNEL_DATA)
        assert (fields.u32(), fields.string()) == (9, b"ab")


@pytest.mark.parametrize("kind", [0, 1, 2, 2**31, 2**32 - 1])
def test_extended_data_of_every_type_is_dropped_and_credited(
    served: Served, kind: int
) -> None:
    channel, conn = served.open(9)
    with conn:
        window = RECEIVE_WINDOW_BYTES
        piece = u32(channel) + u32(kind) + string(bytes(MAX_PACKET_BYTES))
        for _ in range(2 * RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
            while window < MAX_PACKET_BYTES or not served.peer.messages.empty():
                fields = served.peer.expect(seams.MSG_CHANNEL_WINDOW_ADJUST)
                assert fields.u32() == 9
                window += fields.u32()
            served.peer.say(seams.MSG_CHANNEL_EXTENDED_DATA, piece)
            window -= MAX_PACKET_BYTES
        served.data(channel, b"normal data")
        assert read_exactly(conn, 11) == b"normal data"
    served.check_goes_on()


# Channels that nothing pumps: sessions of ours, which are paramiko's own.


@pytest.fixture
def peer(backend: str) -> Iterator[HostileServer]:
    with nothing_left(), HostileServer(backend) as hostile:
        yield hostile


@pytest.mark.parametrize("kind", ["data", "stderr", "both"])
def test_a_session_does_not_buffer_more_than_its_window(
    peer: HostileServer, kind: str
) -> None:
    number, _channel = peer.open_session()
    data = string(bytes(MAX_PACKET_BYTES))
    messages = [
        (seams.MSG_CHANNEL_DATA, u32(number) + data),
        (seams.MSG_CHANNEL_EXTENDED_DATA, u32(number) + u32(1) + data),
    ]
    which = {"data": [0], "stderr": [1], "both": [0, 1]}[kind]
    with bounded_memory(), contextlib.suppress(EOFError):  # when it is gone
        for count in range(2**26 // MAX_PACKET_BYTES):
            peer.say(*messages[which[count % len(which)]])
    peer.expect_disconnect(PROTOCOL_ERROR, "window")


def test_a_session_that_is_read_gets_every_byte(peer: HostileServer) -> None:
    number, channel = peer.open_session()
    window = RECEIVE_WINDOW_BYTES
    received = 0
    for _ in range(3 * RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        if window < MAX_PACKET_BYTES:
            fields = peer.expect(seams.MSG_CHANNEL_WINDOW_ADJUST)
            fields.u32()
            window += fields.u32()
        data = string(bytes(MAX_PACKET_BYTES))
        peer.say(seams.MSG_CHANNEL_DATA, u32(number) + data)
        window -= MAX_PACKET_BYTES
        received += len(channel.recv(MAX_PACKET_BYTES))
    while received < 3 * RECEIVE_WINDOW_BYTES:
        received += len(channel.recv(MAX_PACKET_BYTES))


def test_a_session_takes_no_packet_over_the_maximum(peer: HostileServer) -> None:
    number, _channel = peer.open_session()
    data = string(bytes(MAX_PACKET_BYTES + 1))
    peer.say(seams.MSG_CHANNEL_DATA, u32(number) + data)
    peer.expect_disconnect(PROTOCOL_ERROR, "maximum packet")


def test_adjusts_of_a_session_over_32_bits_end_the_connection(
    peer: HostileServer,
) -> None:
    number, _channel = peer.open_session()
    peer.say(seams.MSG_CHANNEL_WINDOW_ADJUST, u32(number) + u32(2**32 - 1))
    peer.expect_disconnect(PROTOCOL_ERROR, "2^32")


def test_unknown_extended_data_of_a_session_is_credited(peer: HostileServer) -> None:
    number, _channel = peer.open_session()
    piece = u32(number) + u32(2) + string(bytes(MAX_PACKET_BYTES))
    for _ in range(RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        peer.say(seams.MSG_CHANNEL_EXTENDED_DATA, piece)
    fields = peer.expect(seams.MSG_CHANNEL_WINDOW_ADJUST)
    assert fields.u32() == 3
    assert fields.u32() > 0


def test_a_session_whose_packets_may_hold_nothing_ends_the_connection(
    peer: HostileServer,
) -> None:
    with pytest.raises(paramiko.SSHException):
        peer.open_session(max_packet=0)
    peer.expect_disconnect(PROTOCOL_ERROR, "0 bytes at most")
