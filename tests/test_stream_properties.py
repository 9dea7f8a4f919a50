"""Whole streams: however they are cut or end, each byte is accounted for.

On each backend, and for `rtunnel.pump.relay` in both implementations.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtunnel.pump import ImplementationName, implementation
from rtunnel.ssh import seams
from rtunnel.ssh.relay import RelayEnd
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from rtunnel.wire import string, u32
from tests.support.peer import TIMEOUT_S
from tests.support.tunnels import BACKENDS
from tests.support.worlds import STREAM, Visit, World

PORT = 8080
MOST_PIECES = 100

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)
few = settings(max_examples=12, derandomize=True)
lengths = st.one_of(st.integers(0, 5000), st.integers(0, 400_000))
# More than a window, so that it takes credit.
long_lengths = st.one_of(lengths, st.integers(RECEIVE_WINDOW_BYTES, len(STREAM)))
pieces = st.lists(
    st.one_of(st.integers(1, 100), st.integers(1, MAX_PACKET_BYTES)),
    min_size=1,
    max_size=5,
)


def cut(length: int, sizes: list[int]) -> list[bytes]:
    """Cut a stream of this length into pieces of these sizes, over and over."""
    sizes = [max(size, length // MOST_PIECES) for size in sizes]
    parts: list[bytes] = []
    at = 0
    while at < length:
        end = min(at + sizes[len(parts) % len(sizes)], length)
        parts.append(STREAM[at:end])
        at = end
    return parts


@contextlib.contextmanager
def writing(target: socket.socket, parts: list[bytes]) -> Iterator[None]:
    """Write beside the block as fast as it is taken, then end the stream."""

    def write() -> None:
        with contextlib.suppress(OSError), target.dup() as sock:
            sock.settimeout(TIMEOUT_S)
            for part in parts:
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT_S)
    assert not thread.is_alive()


@contextlib.contextmanager
def visited(
    backend: str, window: int, max_packet: int
) -> Iterator[tuple[World, Visit]]:
    """A connection with one visitor."""
    with contextlib.closing(World(backend)) as world:
        world.listen(PORT)
        world.answer(True)
        world.open(PORT, window, max_packet)
        yield world, world.visits[0]


def say_data(world: World, visit: Visit, part: bytes) -> None:
    world.say(seams.MSG_CHANNEL_DATA, visit, string(part))


@on_each_backend
@few
@given(
    to_target=long_lengths,
    to_peer=lengths,
    said_in=pieces,
    written_in=pieces,
    window=st.sampled_from([0, 1, 3000, 1 << 21]),
    portion=st.integers(1, 100_000),
    max_packet=st.sampled_from([1000, MAX_PACKET_BYTES, 1 << 20]),
)
def test_streams_arrive_whole_within_their_windows_however_they_are_cut(
    backend: str,
    to_target: int,
    to_peer: int,
    said_in: list[int],
    written_in: list[int],
    window: int,
    portion: int,
    max_packet: int,
) -> None:
    parts = cut(to_target, said_in)[::-1]
    portion = max(portion, to_peer // MOST_PIECES)
    said = 0

    def is_through() -> bool:
        """Both sides go on, each within its window; `World` looks at what is heard."""
        nonlocal said
        while parts and said + len(parts[-1]) <= visit.credit:
            say_data(world, visit, parts[-1])
            said += len(parts.pop())
            if not parts:
                world.say(seams.MSG_CHANNEL_EOF, visit)
        # All that was granted is what is open now, and what was said.
        assert 0 <= visit.credit - said <= RECEIVE_WINDOW_BYTES
        if len(visit.heard) == visit.window and visit.window < to_peer:
            visit.window += portion
            world.say(seams.MSG_CHANNEL_WINDOW_ADJUST, visit, u32(portion))
        return visit.heard_end == "EOF CLOSE"

    with visited(backend, window, max_packet) as (world, visit):
        if not parts:
            world.say(seams.MSG_CHANNEL_EOF, visit)
        with writing(visit.target, cut(to_peer, written_in)):
            world.wait_for(is_through)
        world.say(seams.MSG_CHANNEL_CLOSE, visit)
        world.wait_for(lambda: visit.ends and visit.got_end)
        assert visit.got == STREAM[:to_target]
        assert visit.heard == STREAM[:to_peer]
        assert visit.ends == [RelayEnd(to_target, to_peer, "closed")]


@on_each_backend
@few
@given(
    to_target=lengths,
    to_peer=lengths,
    said_in=pieces,
    window=st.sampled_from([0, 3000, 1 << 21]),
    reading=st.booleans(),
    how=st.sampled_from(["reset", "closed", "lost"]),
)
def test_what_a_broken_stream_has_lost_is_told(
    backend: str,
    to_target: int,
    to_peer: int,
    said_in: list[int],
    window: int,
    reading: bool,
    how: str,
) -> None:
    with visited(backend, window, MAX_PACKET_BYTES) as (world, visit):
        visit.reading = reading
        with writing(visit.target, [STREAM[:to_peer]]):
            for part in cut(to_target, [min(n, MAX_PACKET_BYTES) for n in said_in]):
                say_data(world, visit, part)
            if how == "reset":
                assert visit.relay is not None
                visit.relay.reset()
            elif how == "closed":
                world.say(seams.MSG_CHANNEL_CLOSE, visit)
            else:
                world.lose()
            visit.reading = True
            world.wait_for(lambda: visit.ends and visit.got_end)
        if how != "lost":
            world.barrier()
        (end,) = visit.ends
        assert end.reason == how
        # Of what was said, this arrived; the rest is lost.
        assert visit.got == STREAM[: end.bytes_in]
        assert to_target - end.bytes_in >= 0
        assert how != "closed" or end.bytes_in == to_target
        assert visit.heard == STREAM[: len(visit.heard)]
        assert len(visit.heard) <= end.bytes_out <= min(to_peer, window)


@pytest.mark.parametrize("name", ["pump", "python"])
@few
@given(
    length=lengths,
    back=lengths,
    written_in=pieces,
    left=st.one_of(st.just(0), st.integers(1, 400_000)),
)
def test_relay_returns_if_and_only_if_every_byte_was_taken(
    name: ImplementationName, length: int, back: int, written_in: list[int], left: int
) -> None:
    """The reader of the first stream leaves `left` bytes of it, and goes."""
    (far_a, near_a), (near_b, far_b) = socket.socketpair(), socket.socketpair()
    taken = max(0, length - left)
    got = b""

    def read() -> None:
        nonlocal got
        with far_b:
            far_b.settimeout(TIMEOUT_S)
            far_b.sendall(STREAM[:back])
            while len(got) < taken:
                got += far_b.recv(min(65536, taken - len(got)))
            if taken < length:
                far_b.recv(1, socket.MSG_PEEK)  # there is more
            else:
                assert far_b.recv(1) == b""

    def read_back() -> None:
        far_a.settimeout(TIMEOUT_S)
        with contextlib.suppress(ConnectionResetError):
            while data := far_a.recv(65536):
                answer.extend(data)

    answer = bytearray()
    threads = [threading.Thread(target=read), threading.Thread(target=read_back)]
    for thread in threads:
        thread.start()
    with far_a, writing(far_a, cut(length, written_in)):
        if taken == length:
            assert implementation(name).relay(near_a, near_b) == (length, back)
            threads[1].join(TIMEOUT_S)
            assert answer == STREAM[:back]
        else:
            with pytest.raises(ConnectionError):
                implementation(name).relay(near_a, near_b)
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert got == STREAM[:taken]
