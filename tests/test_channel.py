"""Channels of the portable backends against a scripted peer that breaks the rules."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Iterator

import pytest

from rtunnel.addresses import parse_bind
from rtunnel.forwards import Forward
from rtunnel.ssh import seams
from rtunnel.ssh.arrivals import ChannelOpen
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.relay import Relay, RelayEnd
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from rtunnel.wire import Reader, boolean, string, u32
from tests.support.peer import TIMEOUT_S, ScriptedPeer
from tests.support.sshd import wait_until
from tests.support.tunnels import read_all, read_end, read_exactly, transport_class

PORT = 8080
NUMBER = 7  # of the peer

# What looks into paramiko, which the engine bypasses.
PORTABLE = pytest.mark.parametrize("backend", ["python", "pump"])


class Channel:
    """One confirmed forwarded channel: the peer's end, and the local socket."""

    def __init__(
        self, backend: str, window: int = 2**21, max_packet: int = 2**15
    ) -> None:
        self.peer = ScriptedPeer(transport_class(backend))
        self.connection = Connection.of(self.peer.client, backend)
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(TIMEOUT_S)
        self.ends: list[RelayEnd] = []
        self.relays: list[Relay] = []

        def on_open(pending: ChannelOpen) -> None:
            # What pauses at first on a busy machine is not to count as interactive.
            self.relays.append(pending.accept(ours, self.ends.append, "bulk"))

        self.peer.transport._handler_table[seams.MSG_GLOBAL_REQUEST] = lambda message: (
            self.peer.grant()
        )
        self.connection.listen(Forward(parse_bind(PORT)), on_open)
        self.peer.open_forwarded(
            PORT, number=NUMBER, window=window, max_packet=max_packet
        )
        self.number = self.peer.expect_confirmation(NUMBER)
        wait_until(lambda: self.relays)

    def send(self, kind: int, fields: bytes = b"") -> None:
        self.peer.send(kind, u32(self.number) + fields)

    def data(self, data: bytes) -> None:
        self.send(seams.MSG_CHANNEL_DATA, string(data))

    def expect(self, kind: int) -> Reader:
        fields = self.peer.expect(kind)
        assert fields.u32() == NUMBER
        return fields

    def expect_nothing(self) -> None:
        """Wait until everything sent was read; nothing may have been answered."""
        self.send(seams.MSG_CHANNEL_REQUEST, string("barrier") + boolean(True))
        self.expect(seams.MSG_CHANNEL_FAILURE)


@pytest.fixture
def channel(backend: str) -> Iterator[Channel]:
    made = Channel(backend)
    yield made
    made.sock.close()
    made.peer.close()


# Windows.


def test_a_peer_within_its_window_gets_credit_for_what_was_read(
    channel: Channel,
) -> None:
    packet, count = bytes(MAX_PACKET_BYTES), 32
    for _ in range(count):
        channel.data(packet)
    read_exactly(channel.sock, count * MAX_PACKET_BYTES)
    # But for less than the next portion, a quarter of the window at most.
    owed = count * MAX_PACKET_BYTES
    while owed > RECEIVE_WINDOW_BYTES // 4:
        owed -= channel.expect(seams.MSG_CHANNEL_WINDOW_ADJUST).u32()
    assert owed >= 0


def test_nothing_is_credited_that_nobody_has_read(channel: Channel) -> None:
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        channel.data(bytes(MAX_PACKET_BYTES))
    received = RECEIVE_WINDOW_BYTES
    while not channel.peer.messages.empty():
        received -= channel.expect(seams.MSG_CHANNEL_WINDOW_ADJUST).u32()
    # What the kernel holds for the socket counts as read; it is far from a window.
    assert received > RECEIVE_WINDOW_BYTES // 2


def test_a_peer_that_ignores_its_window_is_disconnected(channel: Channel) -> None:
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(EOFError):  # when the connection is gone
        while channel.peer.disconnect is None:
            channel.data(bytes(MAX_PACKET_BYTES))
    wait_until(lambda: channel.peer.disconnect is not None)
    assert channel.peer.disconnect is not None
    assert channel.peer.disconnect[0] == 2
    assert "window" in channel.peer.disconnect[1]
    wait_until(lambda: channel.connection.end is not None)


def test_extended_data_is_dropped_and_credited(channel: Channel) -> None:
    for _ in range(2 * RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        channel.send(
            seams.MSG_CHANNEL_EXTENDED_DATA, u32(1) + string(bytes(MAX_PACKET_BYTES))
        )
    credit = 0
    while credit < RECEIVE_WINDOW_BYTES:
        credit += channel.expect(seams.MSG_CHANNEL_WINDOW_ADJUST).u32()
    channel.data(b"normal data")
    assert read_exactly(channel.sock, 11) == b"normal data"


def test_no_more_is_sent_than_the_window_allows(backend: str) -> None:
    channel = Channel(backend, window=10, max_packet=4)
    with channel.sock:
        channel.sock.sendall(b"0123456789abcdef")
        sizes = []
        while sum(sizes) < 10:
            data = channel.expect(seams.MSG_CHANNEL_DATA).string()
            sizes.append(len(data))
        assert max(sizes) <= 4
        channel.expect_nothing()
        channel.send(seams.MSG_CHANNEL_WINDOW_ADJUST, u32(6))
        rest = b""
        while len(rest) < 6:
            rest += channel.expect(seams.MSG_CHANNEL_DATA).string()
        assert rest == b"abcdef"
    channel.peer.close()


def test_credit_beyond_2_to_the_32_ends_the_connection(channel: Channel) -> None:
    channel.send(seams.MSG_CHANNEL_WINDOW_ADJUST, u32(2**32 - 1))
    wait_until(lambda: channel.peer.disconnect is not None)
    assert channel.peer.disconnect is not None
    assert channel.peer.disconnect[0] == 2


# Ends.


def test_half_close_each_way_then_one_close(channel: Channel) -> None:
    channel.data(b"question")
    channel.send(seams.MSG_CHANNEL_EOF)
    assert read_all(channel.sock) == b"question"
    channel.sock.sendall(b"answer")
    channel.sock.shutdown(socket.SHUT_WR)
    assert channel.expect(seams.MSG_CHANNEL_DATA).string() == b"answer"
    channel.expect(seams.MSG_CHANNEL_EOF)
    channel.expect(seams.MSG_CHANNEL_CLOSE)
    assert channel.ends == []  # the answer may still be on its way
    channel.send(seams.MSG_CHANNEL_CLOSE)
    wait_until(lambda: channel.ends == [RelayEnd(8, 6, "closed")])
    channel.peer.expect_nothing()


def test_the_end_of_a_target_needs_no_window(backend: str) -> None:
    channel = Channel(backend, window=5)
    channel.sock.sendall(b"hello")
    assert channel.expect(seams.MSG_CHANNEL_DATA).string() == b"hello"
    channel.sock.shutdown(socket.SHUT_WR)
    channel.expect(seams.MSG_CHANNEL_EOF)
    channel.sock.close()
    channel.peer.close()


def test_a_close_without_eof_delivers_what_came_before_it(channel: Channel) -> None:
    channel.data(b"last words")
    channel.send(seams.MSG_CHANNEL_CLOSE)
    channel.expect(seams.MSG_CHANNEL_CLOSE)
    assert read_all(channel.sock) == b"last words"
    wait_until(lambda: channel.ends == [RelayEnd(10, 0, "closed")])
    channel.peer.expect_nothing()


def test_a_reset_sends_close_at_once_and_only_once(channel: Channel) -> None:
    channel.relays[0].reset()
    channel.expect(seams.MSG_CHANNEL_CLOSE)
    channel.relays[0].reset()
    channel.data(b"too late")
    channel.send(seams.MSG_CHANNEL_EOF)
    channel.send(seams.MSG_CHANNEL_CLOSE)
    channel.peer.expect_nothing()
    assert read_end(channel.sock) in (b"", None)
    wait_until(lambda: [end.reason for end in channel.ends] == ["reset"])


def close_from_here(channel: Channel) -> None:
    """Both streams have ended, and our CLOSE is out; the peer has said none yet."""
    channel.data(b"question")
    channel.send(seams.MSG_CHANNEL_EOF)
    assert read_all(channel.sock) == b"question"
    channel.sock.sendall(b"answer")
    channel.sock.shutdown(socket.SHUT_WR)
    channel.expect(seams.MSG_CHANNEL_DATA)
    channel.expect(seams.MSG_CHANNEL_EOF)
    channel.expect(seams.MSG_CHANNEL_CLOSE)


def test_a_reset_does_not_wait_for_a_peer_that_never_answers_close(
    channel: Channel,
) -> None:
    close_from_here(channel)
    assert not channel.relays[0].ended
    channel.relays[0].reset()
    wait_until(lambda: channel.ends == [RelayEnd(8, 6, "reset")])
    assert channel.relays[0].ended
    channel.send(seams.MSG_CHANNEL_CLOSE)
    channel.peer.expect_nothing()
    assert len(channel.ends) == 1


def test_a_connection_lost_before_the_peer_s_close_is_told_as_a_loss(
    channel: Channel,
) -> None:
    close_from_here(channel)
    channel.peer.transport.close()
    wait_until(lambda: channel.ends)
    (end,) = channel.ends
    assert (end.bytes_in, end.bytes_out, end.reason) == (8, 6, "lost")


def test_messages_for_a_channel_that_is_gone_leave_nothing_behind(
    channel: Channel,
) -> None:
    channel.relays[0].reset()
    channel.expect(seams.MSG_CHANNEL_CLOSE)
    for _ in range(2):
        channel.send(seams.MSG_CHANNEL_CLOSE)
    channel.data(b"ghost")
    channel.peer.expect_nothing()
    assert channel.connection.end is None


@PORTABLE
def test_the_number_of_a_channel_is_free_after_both_closes(channel: Channel) -> None:
    channels = channel.peer.client._channels  # type: ignore[attr-defined]
    channel.relays[0].reset()
    channel.expect(seams.MSG_CHANNEL_CLOSE)
    assert channels.get(channel.number) is not None
    channel.send(seams.MSG_CHANNEL_CLOSE)
    channel.peer.expect_nothing()
    assert channels.get(channel.number) is None


def test_data_behind_eof_is_dropped(channel: Channel) -> None:
    channel.data(b"all")
    channel.send(seams.MSG_CHANNEL_EOF)
    channel.data(b"more")
    channel.send(seams.MSG_CHANNEL_EOF)
    assert read_all(channel.sock) == b"all"
    assert channel.connection.end is None


def test_a_live_channel_survives_garbage_collection(channel: Channel) -> None:
    channel.relays.clear()
    gc.collect()
    channel.data(b"still here")
    assert read_exactly(channel.sock, 10) == b"still here"


def test_a_closed_output_still_earns_credit(channel: Channel) -> None:
    channel.sock.shutdown(socket.SHUT_RD)
    for _ in range(2 * RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        channel.data(bytes(MAX_PACKET_BYTES))
    channel.sock.sendall(b"the other way works")
    credit = 0
    other_way = b""
    while credit < RECEIVE_WINDOW_BYTES or not other_way:
        kind, payload = channel.peer.messages.get(timeout=TIMEOUT_S)
        fields = Reader(payload[4:])
        if kind == seams.MSG_CHANNEL_WINDOW_ADJUST:
            credit += fields.u32()
        else:
            other_way = fields.string()
    assert other_way == b"the other way works"


def test_a_lost_connection_delivers_a_stream_that_was_complete(
    channel: Channel,
) -> None:
    channel.data(b"complete")
    channel.send(seams.MSG_CHANNEL_EOF)
    channel.expect_nothing()
    channel.peer.transport.close()
    assert read_all(channel.sock) == b"complete"
    wait_until(lambda: [end.reason for end in channel.ends] == ["lost"])


# Requests.


def test_a_request_on_a_channel_is_answered_with_failure(channel: Channel) -> None:
    channel.send(seams.MSG_CHANNEL_REQUEST, string("signal") + boolean(False))
    channel.send(seams.MSG_CHANNEL_REQUEST, string("keepalive") + boolean(True))
    channel.expect(seams.MSG_CHANNEL_FAILURE)
    channel.expect_nothing()


# Rekeying.


@PORTABLE
def test_messages_wait_until_a_key_exchange_is_over(channel: Channel) -> None:
    transport = channel.peer.client
    transport.clear_to_send.clear()
    channel.sock.sendall(b"during the exchange")
    channel.send(seams.MSG_CHANNEL_REQUEST, string("keepalive") + boolean(True))
    channel.data(b"inbound goes on")
    # The transport's thread is not held up by the answer it cannot send yet.
    assert read_exactly(channel.sock, 15) == b"inbound goes on"
    assert channel.peer.messages.empty()
    transport.clear_to_send.set()
    kinds = {channel.peer.messages.get(timeout=TIMEOUT_S)[0] for _ in range(2)}
    assert kinds == {seams.MSG_CHANNEL_DATA, seams.MSG_CHANNEL_FAILURE}
