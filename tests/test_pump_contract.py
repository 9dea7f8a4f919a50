"""Pairs and relays: one contract, held by the compiled pump and by the reference."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtunnel.pump import ImplementationName, Pipes, PumpModule, implementation
from tests.support.pumping import (
    TIMEOUT_S,
    Ends,
    open_fds,
    read_all,
    read_exactly,
    running,
    send_reset,
    socket_pair,
)
from tests.support.sshd import wait_until

BOTH = pytest.mark.parametrize("pump", ["pump", "python"], indirect=True)
POLLERS = pytest.mark.parametrize("poller", ["epoll", "poll", "select"])
KINDS = pytest.mark.parametrize("kinds", ["tcp-tcp", "unix-unix", "tcp-socketpair"])

pytestmark = BOTH


@pytest.fixture
def pump(request: pytest.FixtureRequest) -> PumpModule:
    return implementation(cast(ImplementationName, request.param))


class Wires:
    """Two connections whose near ends are for a pump; what is left is closed."""

    def __init__(self, kinds: str, folder: Path | None = None) -> None:
        kind_a, kind_b = kinds.split("-")
        self.far_a, self.near_a = socket_pair(kind_a, folder)
        self.far_b, self.near_b = socket_pair(kind_b, folder)

    def close(self) -> None:
        for sock in (self.far_a, self.near_a, self.far_b, self.near_b):
            sock.close()


@pytest.fixture
def wires() -> Iterator[Wires]:
    with closing(Wires("tcp-tcp")) as wires:
        yield wires


def random_bytes(n: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n)


def send_in_chunks(sock: socket.socket, data: bytes, chunks: list[int]) -> None:
    """Send `data` in pieces of these sizes, over and over, then end the stream."""
    offset = turn = 0
    while offset < len(data):
        size = chunks[turn % len(chunks)]
        sock.sendall(data[offset : offset + size])
        offset += size
        turn += 1
    sock.shutdown(socket.SHUT_WR)


@KINDS
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(st.integers(0, 400_000), st.integers(0, 400_000)),
    chunks=st.lists(st.integers(1, 70_000), min_size=1, max_size=8),
)
def test_bytes_arrive_exactly_both_ways_however_they_are_cut(
    pump: PumpModule,
    kinds: str,
    tmp_path: Path,
    sizes: tuple[int, int],
    chunks: list[int],
) -> None:
    a, b = random_bytes(sizes[0], 1), random_bytes(sizes[1], 2)
    got: dict[str, bytes] = {}
    # Tiny pieces of much data take long, and add nothing.
    chunks = [max(size, max(sizes) // 2000) for size in chunks]
    with closing(Wires(kinds, tmp_path)) as wires, running(pump) as reactor:
        ends = Ends()
        pair = reactor.add_pair(wires.near_a, wires.near_b, ends)
        threads = [
            threading.Thread(target=send_in_chunks, args=(wires.far_a, a, chunks)),
            threading.Thread(target=send_in_chunks, args=(wires.far_b, b, chunks)),
            threading.Thread(target=lambda: got.update(a=read_all(wires.far_a))),
            threading.Thread(target=lambda: got.update(b=read_all(wires.far_b))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert got["b"] == a
        assert got["a"] == b
        assert ends.wait() == (len(a), len(b), None)
        assert (pair.bytes_ab, pair.bytes_ba) == sizes


@POLLERS
def test_bytes_pass_over_every_poller(
    pump: PumpModule, poller: str, wires: Wires
) -> None:
    data = random_bytes(3_000_000)
    with running(pump, poller) as reactor:
        assert reactor.poller == poller
        reactor.add_pair(wires.near_a, wires.near_b)
        sender = threading.Thread(
            target=send_in_chunks, args=(wires.far_a, data, [100_000])
        )
        sender.start()
        assert read_all(wires.far_b) == data
        sender.join()


@KINDS
@pytest.mark.parametrize("first", ["a", "b"])
def test_each_direction_ends_by_itself_behind_its_last_byte(
    pump: PumpModule, kinds: str, first: str, tmp_path: Path
) -> None:
    with closing(Wires(kinds, tmp_path)) as wires, running(pump) as reactor:
        ends = Ends()
        reactor.add_pair(wires.near_a, wires.near_b, ends)
        one, other = wires.far_a, wires.far_b
        if first == "b":
            one, other = other, one
        one.sendall(b"request")
        one.shutdown(socket.SHUT_WR)
        assert read_all(other) == b"request"
        assert not ends.all
        reply = random_bytes(200_000)
        sender = threading.Thread(target=send_in_chunks, args=(other, reply, [5000]))
        sender.start()
        assert read_all(one) == reply
        sender.join()
        assert ends.wait().error is None


def test_a_reset_of_one_side_is_a_reset_for_the_other(
    pump: PumpModule, wires: Wires
) -> None:
    with running(pump) as reactor:
        ends = Ends()
        reactor.add_pair(wires.near_a, wires.near_b, ends)
        wires.far_a.sendall(b"half a mess")
        assert read_exactly(wires.far_b, 11) == b"half a mess"
        send_reset(wires.far_a)
        with pytest.raises(ConnectionResetError):
            wires.far_b.recv(1)
        error = ends.wait().error
        assert isinstance(error, ConnectionResetError)


def test_a_reset_is_noticed_while_the_other_side_takes_nothing(
    pump: PumpModule, wires: Wires
) -> None:
    with running(pump) as reactor:
        ends = Ends()
        pair = reactor.add_pair(wires.near_a, wires.near_b, ends)
        wires.far_a.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wires.far_a.sendall(bytes(64_000_000))
        send_reset(wires.far_a)
        assert isinstance(ends.wait().error, ConnectionResetError)
        assert pair.bytes_ab < 64_000_000
        with pytest.raises(ConnectionResetError):
            read_all(wires.far_b)


def test_bytes_that_nobody_takes_break_the_pair_instead_of_ending_it(
    pump: PumpModule,
) -> None:
    with closing(Wires("tcp-socketpair")) as wires, running(pump) as reactor:
        ends = Ends()
        reactor.add_pair(wires.near_a, wires.near_b, ends)
        wires.far_b.sendall(b"answered before you asked")
        wires.far_b.close()
        assert read_all(wires.far_a) == b"answered before you asked"
        wires.far_a.sendall(b"lost")
        error = ends.wait().error
        assert isinstance(error, BrokenPipeError)
        # A reset behind the end of the stream shows when writing.
        with pytest.raises(BrokenPipeError):
            wires.far_a.sendall(b"more")


def test_a_reader_that_stops_stalls_only_its_own_pair(pump: PumpModule) -> None:
    with (
        closing(Wires("tcp-tcp")) as slow,
        closing(Wires("tcp-tcp")) as fast,
        running(pump) as reactor,
    ):
        reactor.add_pair(slow.near_a, slow.near_b)
        reactor.add_pair(fast.near_a, fast.near_b)
        slow.far_a.settimeout(0.2)
        with pytest.raises(TimeoutError):
            slow.far_a.sendall(bytes(64_000_000))
        data = random_bytes(5_000_000)
        sender = threading.Thread(
            target=send_in_chunks, args=(fast.far_a, data, [65536])
        )
        sender.start()
        assert read_all(fast.far_b) == data
        sender.join()


def test_two_hundred_pairs_do_not_mix(pump: PumpModule) -> None:
    with ExitStack() as stack:
        all_wires = [
            stack.enter_context(closing(Wires("socketpair-socketpair")))
            for _ in range(200)
        ]
        ends = Ends()
        reactor = stack.enter_context(running(pump))
        for wires in all_wires:
            reactor.add_pair(wires.near_a, wires.near_b, ends)
        for i, wires in enumerate(all_wires):
            wires.far_a.sendall(random_bytes(5000, i))
            wires.far_a.shutdown(socket.SHUT_WR)
            wires.far_b.sendall(random_bytes(3000, -i))
            wires.far_b.shutdown(socket.SHUT_WR)
        for i, wires in enumerate(all_wires):
            assert read_all(wires.far_b) == random_bytes(5000, i)
            assert read_all(wires.far_a) == random_bytes(3000, -i)
        ends.wait(200)
        assert set(ends.all) == {(5000, 3000, None)}


def test_a_limited_pair_is_never_faster_than_its_rate(
    pump: PumpModule, wires: Wires
) -> None:
    rate = 2_000_000
    with running(pump) as reactor:
        started_s = time.monotonic()
        pair = reactor.add_pair(wires.near_a, wires.near_b, rate_bytes_s=rate)
        wires.far_a.settimeout(0.05)
        wires.far_b.setblocking(False)
        received = 0
        while received < rate // 2:
            with pytest.raises(TimeoutError):
                wires.far_a.sendall(bytes(10_000_000))
            while True:
                try:
                    received += len(wires.far_b.recv(1 << 20))
                except BlockingIOError:
                    break
            # Counted when the bytes have been written, which is when they can be read.
            counted = pair.bytes_ab
            elapsed_s = time.monotonic() - started_s
            # The bucket starts empty, so there is nothing to forgive.
            assert max(received, counted) <= rate * elapsed_s
        wait_until(lambda: pair.bytes_ab >= received)


def test_reset_drops_a_pair_at_once(pump: PumpModule, wires: Wires) -> None:
    with running(pump) as reactor:
        ends = Ends()
        pair = reactor.add_pair(wires.near_a, wires.near_b, ends)
        pair.reset()
        error = ends.wait().error
        assert error is not None
        assert error.errno == errno.ECONNABORTED
        for far in (wires.far_a, wires.far_b):
            with pytest.raises(ConnectionResetError):
                far.recv(1)
        pair.reset()
        assert len(ends.all) == 1


@POLLERS
def test_closing_a_busy_reactor_leaves_no_descriptor_and_no_thread(
    pump: PumpModule, poller: str
) -> None:
    fds, threads = open_fds(), threading.active_count()
    with ExitStack() as stack:
        ends = Ends()
        with running(pump, poller) as reactor:
            for _ in range(20):
                wires = stack.enter_context(closing(Wires("tcp-tcp")))
                reactor.add_pair(wires.near_a, wires.near_b, ends, 10_000_000)
                wires.far_a.settimeout(0.01)
                with pytest.raises(TimeoutError):
                    wires.far_a.sendall(bytes(64_000_000))
        ends.wait(20)
        assert {end.error and end.error.errno for end in ends.all} == {
            errno.ECONNABORTED
        }
    assert open_fds() == fds
    assert threading.active_count() == threads


def test_pairs_that_ended_leave_no_descriptor(pump: PumpModule) -> None:
    with running(pump) as reactor:
        ends = Ends()
        fds = open_fds()
        for _ in range(10):
            with closing(Wires("tcp-socketpair")) as wires:
                reactor.add_pair(wires.near_a, wires.near_b, ends)
                wires.far_a.sendall(bytes(1000))
                wires.far_a.shutdown(socket.SHUT_WR)
                assert len(read_all(wires.far_b)) == 1000
        ends.wait(10)
    # What the reactor kept for reuse went with it.
    assert not open_fds() - fds


def test_a_callback_that_raises_is_logged_and_stops_nothing(
    pump: PumpModule, wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(end: object) -> None:
        raise LookupError("a mistake of the caller")

    with running(pump) as reactor, closing(Wires("tcp-tcp")) as others:
        reactor.add_pair(wires.near_a, wires.near_b, broken).reset()
        reactor.add_pair(others.near_a, others.near_b)
        wait_until(lambda: "a mistake of the caller" in caplog.text)
        others.far_a.sendall(b"still here")
        assert read_exactly(others.far_b, 10) == b"still here"


def test_a_socket_that_cannot_be_spliced_to_is_copied_to(
    pump: PumpModule, wires: Wires
) -> None:
    # splice(2) answers EINVAL for a target in append mode.
    flags = fcntl.fcntl(wires.near_b, fcntl.F_GETFL)
    fcntl.fcntl(wires.near_b, fcntl.F_SETFL, flags | os.O_APPEND)
    data = random_bytes(2_000_000)
    with running(pump) as reactor:
        reactor.add_pair(wires.near_a, wires.near_b)
        sender = threading.Thread(
            target=send_in_chunks, args=(wires.far_a, data, [100_000])
        )
        sender.start()
        assert read_all(wires.far_b) == data
        sender.join()


def test_a_process_is_relayed_by_its_pipes(pump: PumpModule, wires: Wires) -> None:
    data = random_bytes(1_000_000)
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat,
        running(pump) as reactor,
    ):
        assert cat.stdin is not None
        assert cat.stdout is not None
        pipes = Pipes(os.dup(cat.stdout.fileno()), os.dup(cat.stdin.fileno()))
        cat.stdin.close()
        cat.stdout.close()
        ends = Ends()
        reactor.add_pair(wires.near_a, pipes, ends)
        sender = threading.Thread(
            target=send_in_chunks, args=(wires.far_a, data, [60_000])
        )
        sender.start()
        assert read_all(wires.far_a) == data
        sender.join()
        assert ends.wait() == (len(data), len(data), None)
        assert cat.wait(TIMEOUT_S) == 0


def test_relay_returns_the_totals_of_both_directions(
    pump: PumpModule, wires: Wires
) -> None:
    def talk() -> None:
        send_in_chunks(wires.far_a, bytes(100_000), [7000])
        assert len(read_all(wires.far_b)) == 100_000
        send_in_chunks(wires.far_b, bytes(30_000), [7000])
        assert len(read_all(wires.far_a)) == 30_000

    talker = threading.Thread(target=talk)
    talker.start()
    totals = pump.relay(wires.near_a, wires.near_b)
    talker.join()
    assert totals == (100_000, 30_000)
    assert (totals.bytes_ab, totals.bytes_ba) == (100_000, 30_000)


class Interrupt(BaseException):
    """What KeyboardInterrupt is, from a signal that pytest does not want."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Return a function that interrupts the main thread, as Ctrl-C does."""

    def handler(signum: int, frame: object) -> None:
        raise Interrupt

    previous = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident or 0
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, previous)


def test_an_interrupt_ends_an_idle_relay_and_resets_both_sides(
    pump: PumpModule, wires: Wires, interrupt: Callable[[], None]
) -> None:
    def send_one_byte_first() -> None:
        wires.far_a.sendall(b"x")
        wires.far_b.recv(1)
        interrupt()

    sender = threading.Thread(target=send_one_byte_first)
    sender.start()
    with pytest.raises(Interrupt):
        pump.relay(wires.near_a, wires.near_b)
    sender.join()
    for far in (wires.far_a, wires.far_b):
        with pytest.raises(ConnectionResetError):
            far.recv(1)


def test_an_interrupt_ends_a_busy_relay(
    pump: PumpModule, wires: Wires, interrupt: Callable[[], None]
) -> None:
    def pour() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                wires.far_a.sendall(bytes(1 << 20))

    def swallow() -> None:
        received = 0
        with contextlib.suppress(ConnectionError):
            while n := len(wires.far_b.recv(1 << 20)):
                received += n
                if received - n < 50_000_000 <= received:
                    interrupt()

    threads = [threading.Thread(target=pour), threading.Thread(target=swallow)]
    for thread in threads:
        thread.start()
    with pytest.raises(Interrupt):
        pump.relay(wires.near_a, wires.near_b)
    for thread in threads:
        thread.join()


def test_relay_raises_what_broke_it(pump: PumpModule, wires: Wires) -> None:
    send_reset(wires.far_a)
    with pytest.raises(ConnectionResetError):
        pump.relay(wires.near_a, wires.near_b)
    with pytest.raises(ConnectionResetError):
        wires.far_b.recv(1)


def test_what_cannot_be_pumped_is_refused_and_stays_with_the_caller(
    pump: PumpModule, wires: Wires, tmp_path: Path
) -> None:
    reactor = pump.Reactor()
    context = ssl.create_default_context()
    with (
        closing(reactor),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        context.wrap_socket(
            wires.near_b.dup(),
            server_hostname="localhost",
            do_handshake_on_connect=False,
        ) as tls,
        (tmp_path / "file").open("wb") as file,
    ):
        with pytest.raises(ValueError, match="stream socket is needed"):
            reactor.add_pair(wires.near_a, datagrams)
        with pytest.raises(TypeError, match="TLS"):
            reactor.add_pair(wires.near_a, tls)
        with pytest.raises(TypeError, match="a socket is needed"):
            reactor.add_pair(wires.near_a, 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="neither a pipe"):
            reactor.add_pair(wires.near_a, Pipes(file.fileno(), file.fileno()))
        with pytest.raises(ValueError, match="same descriptor"):
            reactor.add_pair(wires.near_a, wires.near_a)
        with pytest.raises(ValueError, match="rate_bytes_s"):
            reactor.add_pair(wires.near_a, wires.near_b, rate_bytes_s=0)
        with socket.socket() as closed:
            pass
        with pytest.raises(ValueError, match="closed"):
            reactor.add_pair(wires.near_a, closed)
        reactor.close()
        with pytest.raises(RuntimeError, match="closed"):
            reactor.add_pair(wires.near_a, wires.near_b)
    wires.far_a.sendall(b"mine")
    assert wires.near_a.recv(4) == b"mine"


def test_select_refuses_descriptors_that_it_has_no_room_for(
    pump: PumpModule, wires: Wires
) -> None:
    high = fcntl.fcntl(wires.near_a, fcntl.F_DUPFD_CLOEXEC, 1024)
    with socket.socket(fileno=high) as sock, closing(pump.Reactor("select")) as reactor:
        with pytest.raises(ValueError, match="use epoll"):
            reactor.add_pair(sock, wires.near_b)
        assert sock.fileno() == high


def test_an_unknown_poller_is_refused(pump: PumpModule) -> None:
    with pytest.raises(ValueError, match="epoll, poll or select"):
        pump.Reactor("kqueue")  # type: ignore[arg-type]


def test_a_reactor_runs_once_at_a_time_and_not_after_close(pump: PumpModule) -> None:
    with running(pump) as reactor:
        seen: list[BaseException] = []

        def run_again(end: object) -> None:
            try:
                reactor.run()
            except RuntimeError as exc:
                seen.append(exc)
            reactor.close()

        with closing(Wires("tcp-tcp")) as wires:
            reactor.add_pair(wires.near_a, wires.near_b, run_again).reset()
            wait_until(lambda: seen)
    reactor.run()
    reactor.close()
    assert "runs already" in str(seen[0])


def test_closing_a_reactor_that_never_ran_ends_what_it_holds(
    pump: PumpModule, wires: Wires
) -> None:
    fds = open_fds()
    ends = Ends()
    reactor = pump.Reactor()
    reactor.add_pair(wires.near_a, wires.near_b, ends)
    reactor.close()
    assert len(ends.all) == 1
    with pytest.raises(ConnectionResetError):
        wires.far_a.recv(1)
    assert open_fds() < fds
