"""A peer that sends small things without an end: memory stays within its limits."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from rtunnel import _pump_entries
from rtunnel.ssh import outbox, packetizer, seams
from rtunnel.ssh.connection import PEER_SAID_MESSAGES, Connection
from rtunnel.wire import boolean, string, u32
from tests.support.hostile import (
    PORT,
    HostileServer,
    Served,
    bounded_memory,
    nothing_left,
)
from tests.support.sshd import wait_until
from tests.support.tunnels import read_exactly

PROTOCOL_ERROR = 2
COUNT = 5000
PING = 192

FLOODS = {
    "IGNORE": (2, string(bytes(30_000))),
    "DEBUG": (4, boolean(True) + string("x" * 30_000) + string("")),
    "UNIMPLEMENTED": (3, u32(0)),
    "PING": (PING, string(bytes(1000))),
    "global requests": (80, string("hostkeys-00@openssh.com") + boolean(False)),
    "replies": (82, b""),
}


@pytest.fixture
def served(backend: str) -> Iterator[Served]:
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        yield it


@pytest.mark.parametrize("flood", FLOODS)
def test_messages_that_mean_nothing_cost_nothing(served: Served, flood: str) -> None:
    kind, payload = FLOODS[flood]
    with bounded_memory():
        for _ in range(COUNT):
            served.peer.say(kind, payload)
        served.settle()
    served.check_goes_on()
    said = Connection.of(served.peer.client)._peer_said
    assert len(said) <= PEER_SAID_MESSAGES


def test_each_ping_that_was_not_offered_is_unimplemented(served: Served) -> None:
    for _ in range(100):
        served.peer.say(PING, string(b"data"))
    served.settle()
    assert len(served.peer.unimplemented) == 100
    served.check_goes_on()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (seams.MSG_CHANNEL_WINDOW_ADJUST, u32(0)),
        (seams.MSG_CHANNEL_DATA, string(b"")),
        (seams.MSG_CHANNEL_EXTENDED_DATA, u32(1) + string(b"")),
        (seams.MSG_CHANNEL_SUCCESS, b""),
        (seams.MSG_CHANNEL_FAILURE, b""),
        (seams.MSG_CHANNEL_REQUEST, string("x") + boolean(False)),
    ],
    ids=["adjusts of 0", "data", "extended data", "SUCCESS", "FAILURE", "requests"],
)
def test_empty_messages_of_a_channel_cost_nothing(
    served: Served, kind: int, fields: bytes
) -> None:
    with bounded_memory():
        for _ in range(COUNT):
            served.peer.say(kind, u32(served.other) + fields)
        served.settle()
    assert served.drain() == []
    served.check_goes_on()


def test_packets_of_one_byte_are_put_together(served: Served) -> None:
    channel, conn = served.open(9)
    with conn:
        # Nobody reads: first what the socket takes, in packets that are not small.
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        full = bytes(32768)
        for _ in range(20):
            served.data(channel, full)
        with bounded_memory():
            for _ in range(4 * COUNT):
                served.data(channel, b"x")
            served.settle()
        if served.backend == "python":
            backend: Any = Connection.of(served.peer.client).backend
            queue = backend._channels[channel]._port._queue
            assert len(queue) < 25 + 4 * COUNT // _pump_entries.COALESCE_BYTES * 2
        assert read_exactly(conn, 20 * 32768 + 4 * COUNT) == bytes(
            20 * 32768
        ) + b"x" * (4 * COUNT)
    served.check_goes_on()


def test_opens_without_an_end_are_refused_one_by_one(served: Served) -> None:
    with bounded_memory():
        for number in range(1000):
            served.peer.open_forwarded(PORT + 1, number=number)
        for number in range(1000):
            assert served.peer.expect_open_failure(number) == 1
    served.check_goes_on()


def test_visitors_that_nobody_takes_are_refused(served: Served) -> None:
    with bounded_memory():
        for number in range(2, 602):
            served.peer.open_forwarded(PORT, number=number)
        answers = [served.peer.messages.get(timeout=20)[0] for _ in range(600)]
    assert answers.count(seams.MSG_CHANNEL_OPEN_CONFIRMATION) <= 128
    assert answers.count(seams.MSG_CHANNEL_OPEN_FAILURE) >= 600 - 128
    served.check_goes_on()


def test_who_asks_and_never_reads_is_cut_off(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outbox.BACKLOG_MESSAGES == 65_536
    monkeypatch.setattr(outbox, "BACKLOG_MESSAGES", 2000)
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        # The peer's own thread stops reading at the next message.
        stuck = Stuck(peer)
        question = u32(it.other) + string("x" * 20) + boolean(True)
        with bounded_memory(), contextlib.suppress(EOFError, OSError):
            for _ in range(30 * COUNT):
                peer.say(seams.MSG_CHANNEL_REQUEST, question)
                if not peer.client.is_active():
                    break
        wait_until(lambda: not peer.client.is_active())
        stuck.release()


class Stuck:
    """A peer whose transport reads no more."""

    def __init__(self, peer: HostileServer) -> None:
        import threading

        self._go_on = threading.Event()
        table = seams.handler_table(peer.transport)
        table[seams.MSG_GLOBAL_REQUEST] = lambda message: self._go_on.wait(60)
        Connection.of(peer.client).notify("stop reading")

    def release(self) -> None:
        self._go_on.set()


def test_what_is_held_in_a_key_exchange_is_bounded(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packetizer.HELD_MESSAGES_MAX == 65_536
    monkeypatch.setattr(packetizer, "HELD_MESSAGES_MAX", 500)
    with nothing_left(), HostileServer(backend) as peer:
        peer.hold_rekey()
        ask = string("hostkeys-00@openssh.com") + boolean(True)
        with contextlib.suppress(EOFError):
            for _ in range(2 * COUNT):
                peer.say(seams.MSG_GLOBAL_REQUEST, ask)
        peer.expect_disconnect(PROTOCOL_ERROR, "key exchange")
