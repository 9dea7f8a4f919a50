"""What the engine's parts cost: packets, the channel table, pumping, the codecs.

Two engines are connected back to back, with keys of our own: no key exchange, no
paramiko, no server.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rtunnel import _engine, wire
from rtunnel.addresses import TcpBind
from rtunnel.forwards import Forward, ForwardTable
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES, ReceiveWindow
from tests.support.pumping import read_exactly, socket_pair

KEYS = ((b"k" * 16, b"n" * 12), (b"K" * 16, b"N" * 12))
MSG_IGNORE = b"\x02"
MSG_ADJUST = b"\x5d"
MSG_OPEN_CONFIRMATION = 91
SIDE = (RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES)
BULK_BYTES = 128 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 10.0


@contextmanager
def engines() -> Iterator[tuple[_engine.Engine, _engine.Engine]]:
    """Two engines that are each other's peer."""
    _engine.load_libcrypto()
    near, far = socket_pair("tcp")
    with near, far:
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _engine.Engine(near.fileno()), _engine.Engine(far.fileno())
        for engine, seal, opens in zip(pair, KEYS, KEYS[::-1], strict=True):
            engine.set_seal_key(*seal)
            engine.set_open_key(*opens)
        try:
            yield pair
        finally:
            for engine in pair:
                engine.close()
                engine.end_channels()


def packet(engine: _engine.Engine) -> tuple[int, bytes]:
    """Return the next message that the engine does not handle itself."""
    while True:
        kind, detail = engine.next(1000)
        assert kind != _engine.FAULT, detail
        if kind == _engine.PACKET:
            return int(detail[0]), bytes(detail[1])


@contextmanager
def pumped() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The outer ends of one channel between two engines, each on a thread."""
    here, near = socket_pair("tcp")
    there, far = socket_pair("tcp")
    with here, there, engines() as (client, server):
        for sock in (near, far):
            sock.setblocking(False)
        opening = server.reserve(*SIDE)
        accepted = client.accept(near.detach(), opening, *SIDE, *SIDE)
        threads = [threading.Thread(target=run, args=(client,))]
        threads[0].start()
        assert packet(server)[0] == MSG_OPEN_CONFIRMATION
        server.confirm(opening, far.detach(), accepted, *SIDE)
        threads.append(threading.Thread(target=run, args=(server,)))
        threads[1].start()
        try:
            yield here, there
        finally:
            for engine in (client, server):
                engine.close()
            for thread in threads:
                thread.join(TIMEOUT_S)


def run(engine: _engine.Engine) -> None:
    """Be the transport's thread."""
    while engine.next(1000)[0] not in (_engine.EOF, _engine.ERROR, _engine.FAULT):
        engine.take_ended()


# -- packets ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 1024, MAX_PACKET_BYTES])
def test_seal_send_receive_and_open_a_packet(
    benchmark: BenchmarkFixture, size: int
) -> None:
    message = MSG_IGNORE + bytes(size)
    with engines() as (client, server):

        def one() -> None:
            client.send(message)
            packet(server)

        benchmark(one)


# -- channels --------------------------------------------------------------------------


@pytest.mark.parametrize("live", [0, 10_000])
def test_a_channel_more_beside_others(benchmark: BenchmarkFixture, live: int) -> None:
    """What a channel costs in the table; equal, however many there are."""
    with engines() as (client, _):
        for _ in range(live):
            client.reserve(*SIDE)

        def one() -> None:
            client.cancel(client.reserve(*SIDE))

        benchmark(one)


@pytest.mark.parametrize("live", [1, 2000])
def test_a_message_for_one_of_many_channels(
    benchmark: BenchmarkFixture, live: int
) -> None:
    with engines() as (client, server), ExitStack() as stack:
        ids = []
        for _ in range(live):
            outer, inner = socket_pair("socketpair")
            stack.enter_context(outer)
            inner.setblocking(False)
            ids.append(server.reserve(*SIDE))
            server.confirm(ids[-1], inner.detach(), 0, *SIDE)
        number = count()

        def one() -> None:
            # An adjust: found in the table, and next to no work.
            local_id = ids[next(number) * 7919 % len(ids)]
            client.send(MSG_ADJUST + wire.u32(local_id) + wire.u32(1))
            client.send(MSG_IGNORE)
            packet(server)

        benchmark(one)


def test_bulk_through_a_channel(benchmark: BenchmarkFixture) -> None:
    data = memoryview(bytes(CHUNK_BYTES))
    into = bytearray(CHUNK_BYTES)
    with pumped() as (here, there):

        def send() -> None:
            for _ in range(BULK_BYTES // CHUNK_BYTES):
                here.sendall(data)

        def transfer() -> None:
            sender = threading.Thread(target=send)
            sender.start()
            left = BULK_BYTES
            while left:
                left -= there.recv_into(into, min(left, CHUNK_BYTES))
            sender.join()

        benchmark.pedantic(transfer, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    rate = BULK_BYTES / benchmark.stats.stats.min / 1e6
    benchmark.extra_info["MB/s"] = rate
    print(f"\n{benchmark.name}: {rate:.0f} MB/s, both engines in this process")


def test_round_trip_through_a_channel(benchmark: BenchmarkFixture) -> None:
    with pumped() as (here, there):

        def one() -> None:
            here.sendall(b"x" * 64)
            there.sendall(read_exactly(there, 64))
            read_exactly(here, 64)

        benchmark(one)


# -- Python: codecs, windows, forwards -------------------------------------------------


def test_pack_a_channel_open(benchmark: BenchmarkFixture) -> None:
    def pack() -> bytes:
        return b"".join(
            [
                wire.string("forwarded-tcpip"),
                *(wire.u32(number) for number in (7, *SIDE)),
                wire.string("127.0.0.1"),
                wire.u32(8080),
                wire.string("127.0.0.1"),
                wire.u32(50000),
            ]
        )

    benchmark(pack)


def test_read_a_channel_open(benchmark: BenchmarkFixture) -> None:
    origin = wire.string("127.0.0.1") + wire.u32(50000)
    head = wire.string("forwarded-tcpip") + wire.u32(7) + wire.u32(1) + wire.u32(2)
    message = head + wire.string("127.0.0.1") + wire.u32(8080) + origin

    def read() -> None:
        reader = wire.Reader(message)
        fields: tuple[Callable[[], object], ...] = (
            *(reader.text, reader.u32, reader.u32, reader.u32),
            *(reader.text, reader.u32, reader.text, reader.u32),
        )
        for field in fields:
            field()

    benchmark(read)


def test_charge_and_credit_a_window(benchmark: BenchmarkFixture) -> None:
    window = ReceiveWindow()

    def one() -> None:
        window.charge(MAX_PACKET_BYTES)
        window.consume(MAX_PACKET_BYTES)

    benchmark(one)


@pytest.mark.parametrize("forwards", [1, 1000])
def test_find_the_forward_of_an_open(
    benchmark: BenchmarkFixture, forwards: int
) -> None:
    table = ForwardTable()
    for port in range(10_000, 10_000 + forwards):
        table.add(Forward(TcpBind("127.0.0.1", port)))
    benchmark(table.match, "tcp", "127.0.0.1", 10_000 + forwards - 1)
