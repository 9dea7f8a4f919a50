"""Ports (memory <-> socket): one contract, held by both implementations of the pump."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtunnel._pump_types import GRANT_MAX_BYTES, PORT_BUFFER_MAX_BYTES
from rtunnel.pump import ImplementationName, PortLike, PumpModule, implementation
from tests.support.pumping import (
    TIMEOUT_S,
    Owner,
    open_fds,
    read_all,
    read_exactly,
    running,
    send_reset,
    socket_pair,
)
from tests.support.sshd import wait_until

POLLERS = pytest.mark.parametrize("poller", ["epoll", "poll", "select"])

pytestmark = pytest.mark.parametrize("pump", ["pump", "python"], indirect=True)


@pytest.fixture
def pump(request: pytest.FixtureRequest) -> PumpModule:
    return implementation(cast(ImplementationName, request.param))


class Rig:
    """One port on a reactor of its own: `far` is what its socket is connected to."""

    def __init__(self, pump: PumpModule, kind: str = "tcp", poller: str = "auto"):
        self._stack = ExitStack()
        self.far, near = socket_pair(kind)
        self._stack.enter_context(self.far)
        self.reactor = self._stack.enter_context(running(pump, poller))
        self.owner = Owner()
        self.port: PortLike = self.reactor.add_port(near, self.owner)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def rig(pump: PumpModule) -> Iterator[Rig]:
    with closing(Rig(pump)) as rig:
        yield rig


@pytest.mark.parametrize("kind", ["tcp", "socketpair"])
@POLLERS
def test_bytes_pass_exactly_both_ways(pump: PumpModule, kind: str, poller: str) -> None:
    size = 2_000_000
    data = random.Random(1).randbytes(size)
    got: list[bytes] = []
    with closing(Rig(pump, kind, poller)) as rig:
        rig.port.grant(len(data))
        threads = [
            threading.Thread(target=rig.far.sendall, args=(data,)),
            threading.Thread(target=lambda: got.append(read_exactly(rig.far, size))),
        ]
        for thread in threads:
            thread.start()
        for offset in range(0, len(data), 32768):
            rig.port.feed(data[offset : offset + 32768])
        for thread in threads:
            thread.join(TIMEOUT_S)
        rig.owner.wait_for(received=len(data), consumed=len(data))
        assert got == [data]
        assert rig.owner.received == data
        assert (rig.port.bytes_in, rig.port.bytes_out) == (len(data), len(data))
        assert rig.port.buffered_bytes == 0


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sent=st.lists(st.binary(min_size=1, max_size=3000), max_size=20),
    grants=st.lists(st.integers(0, 5000), max_size=20),
)
def test_no_more_is_read_than_was_granted(
    pump: PumpModule, sent: list[bytes], grants: list[int]
) -> None:
    stream = b"".join(sent)
    allowed = 0
    with closing(Rig(pump, "socketpair")) as rig:
        for piece in sent:
            rig.far.sendall(piece)
        for grant in grants:
            rig.port.grant(grant)
            allowed += grant
            rig.owner.wait_for(received=min(allowed, len(stream)))
            assert len(rig.owner.received) <= allowed
            assert stream.startswith(rig.owner.received)
        rig.far.shutdown(socket.SHUT_WR)
        rig.port.grant(len(stream))
        rig.owner.wait_eof()
        assert rig.owner.received == stream


def test_bytes_then_the_end_of_the_stream_then_the_end(rig: Rig) -> None:
    rig.far.sendall(b"last words")
    rig.far.shutdown(socket.SHUT_WR)
    rig.port.grant(100)
    rig.owner.wait_eof()
    assert rig.owner.received == b"last words"
    assert not rig.owner.ended
    rig.port.feed(b"answer")
    rig.port.feed_eof()
    assert read_all(rig.far) == b"answer"
    assert rig.owner.wait_end() is None
    order = [name for name in rig.owner.order if name != "consumed"]
    assert order == ["readable", "eof", "end"]
    assert rig.owner.consumed == 6


def test_output_may_end_first(rig: Rig) -> None:
    rig.port.feed(b"request")
    rig.port.feed_eof()
    rig.port.feed_eof()
    assert read_all(rig.far) == b"request"
    rig.far.sendall(b"answer")
    rig.port.grant(100)
    rig.owner.wait_for(received=6)
    assert not rig.owner.ended
    rig.far.close()
    assert rig.owner.wait_end() is None
    assert rig.owner.received == b"answer"


def test_the_end_of_the_stream_needs_no_grant(rig: Rig) -> None:
    rig.far.shutdown(socket.SHUT_WR)
    rig.owner.wait_eof()


def test_the_end_of_the_stream_shows_when_the_grant_was_used_up_exactly(
    rig: Rig,
) -> None:
    rig.port.grant(5)
    rig.far.sendall(b"exact")
    rig.owner.wait_for(received=5)
    rig.far.shutdown(socket.SHUT_WR)
    rig.owner.wait_eof()
    assert rig.owner.order == ["readable", "eof"]


def test_a_reader_that_stops_holds_back_credit_not_the_caller(rig: Rig) -> None:
    total = 8_000_000
    for _ in range(80):
        rig.port.feed(bytes(100_000))
    assert rig.port.buffered_bytes > 0
    assert rig.owner.consumed <= total - rig.port.buffered_bytes
    received = 0
    while received < total:
        received += len(rig.far.recv(1 << 20))
    rig.owner.wait_for(consumed=total)
    assert rig.owner.consumed == total
    assert rig.port.buffered_bytes == 0


def test_a_port_refuses_what_no_window_allows(rig: Rig) -> None:
    rig.port.feed(bytes(PORT_BUFFER_MAX_BYTES))
    with pytest.raises(BufferError, match="on_consumed"):
        rig.port.feed(bytes(PORT_BUFFER_MAX_BYTES))
    with pytest.raises(ValueError, match="out of range"):
        rig.port.grant(-1)
    rig.port.grant(GRANT_MAX_BYTES)
    with pytest.raises(ValueError, match="out of range"):
        rig.port.grant(1)


def test_nothing_may_be_fed_behind_the_end(rig: Rig) -> None:
    rig.port.feed_eof()
    with pytest.raises(RuntimeError, match="after feed_eof"):
        rig.port.feed(b"late")


def test_what_the_socket_does_not_take_is_consumed_all_the_same(
    pump: PumpModule,
) -> None:
    with closing(Rig(pump, "socketpair")) as rig:
        rig.far.shutdown(socket.SHUT_RD)
        for _ in range(10):
            rig.port.feed(b"into the void")
        rig.owner.wait_for(consumed=130)
        rig.far.sendall(b"but listening to me")
        rig.port.grant(100)
        rig.owner.wait_for(received=19)
        assert rig.port.bytes_out == 0
        assert not rig.owner.ended
        rig.far.close()
        rig.owner.wait_eof()
        rig.port.feed_eof()
        assert rig.owner.wait_end() is None


def test_a_reset_behind_the_end_of_the_stream_only_ends_the_output(rig: Rig) -> None:
    rig.port.grant(100)
    rig.far.sendall(b"whole")
    rig.far.close()
    rig.owner.wait_eof()
    fed = 0
    # The first bytes bring the reset, the next ones meet it.
    while rig.port.bytes_out == fed:
        rig.port.feed(b"more")
        fed += 4
    rig.owner.wait_for(consumed=fed)
    assert rig.owner.received == b"whole"
    assert not rig.owner.ended
    rig.port.feed_eof()
    assert rig.owner.wait_end() is None


@pytest.mark.parametrize("poller", ["epoll", "poll"])
@pytest.mark.parametrize("pending", [b"", b"unread"])
def test_a_reset_ends_the_port_at_once_even_without_a_grant(
    pump: PumpModule, poller: str, pending: bytes
) -> None:
    with closing(Rig(pump, "tcp", poller)) as rig:
        rig.far.sendall(pending)
        send_reset(rig.far)
        assert isinstance(rig.owner.wait_end(), ConnectionResetError)
        assert rig.owner.order == ["end"]


@POLLERS
def test_a_reset_ends_a_port_that_reads(pump: PumpModule, poller: str) -> None:
    with closing(Rig(pump, "tcp", poller)) as rig:
        rig.port.grant(100)
        rig.far.sendall(b"some")
        rig.owner.wait_for(received=4)
        send_reset(rig.far)
        assert isinstance(rig.owner.wait_end(), ConnectionResetError)


def test_reset_drops_what_was_fed_and_the_peer_sees_it(rig: Rig) -> None:
    rig.port.feed(bytes(16_000_000))
    assert rig.port.buffered_bytes > 0
    rig.port.reset()
    error = rig.owner.wait_end()
    assert error is not None
    assert error.errno == errno.ECONNABORTED
    with pytest.raises(ConnectionResetError):
        read_all(rig.far)


def test_close_delivers_what_was_fed_and_reads_no_more(rig: Rig) -> None:
    data = random.Random(2).randbytes(8_000_000)
    rig.port.grant(1000)
    rig.port.feed(data)
    assert rig.port.buffered_bytes > 0
    rig.port.close()
    rig.far.sendall(b"nobody reads this")
    assert read_all(rig.far) == data
    assert rig.owner.wait_end() is None
    assert not rig.owner.received


def test_a_port_that_has_ended_takes_every_call_and_does_nothing(rig: Rig) -> None:
    rig.port.reset()
    rig.owner.wait_end()
    rig.port.grant(5)
    rig.port.feed(b"late")
    rig.port.feed_eof()
    rig.port.reset()
    rig.port.close()
    assert rig.port.buffered_bytes == 0
    assert rig.owner.order == ["end"]


def test_a_callback_may_call_back_into_the_reactor(pump: PumpModule) -> None:
    class Echo(Owner):
        port: PortLike

        def on_readable(self, data: bytes) -> None:
            super().on_readable(data)
            self.port.feed(data)

        def on_consumed(self, n: int) -> None:
            super().on_consumed(n)
            self.port.grant(n)

        def on_eof(self) -> None:
            super().on_eof()
            self.port.feed_eof()

    far, near = socket_pair("tcp")
    data = random.Random(3).randbytes(1_000_000)
    with far, running(pump) as reactor:
        echo = Echo()
        echo.port = reactor.add_port(near, echo)
        echo.port.grant(65536)
        sender = threading.Thread(target=far.sendall, args=(data,))
        sender.start()
        assert read_exactly(far, len(data)) == data
        sender.join()
        far.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        assert echo.wait_end() is None


@pytest.mark.parametrize("name", ["on_readable", "on_eof", "on_consumed", "on_end"])
def test_a_callback_that_raises_ends_only_its_own_port(
    pump: PumpModule, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Owner):
        def _note(self, event: str) -> None:
            super()._note(event)
            if f"on_{event}" == name:
                raise LookupError("a mistake of the caller")

    far, near = socket_pair("tcp")
    with far, closing(Rig(pump)) as rig:
        broken = Broken()
        port = rig.reactor.add_port(near, broken)
        far.sendall(b"in")
        port.grant(10)
        port.feed(b"out")
        if name in ("on_eof", "on_end"):
            assert far.recv(3) == b"out"
            far.shutdown(socket.SHUT_WR)
        if name == "on_end":
            port.feed_eof()
        broken.wait_end()
        wait_until(lambda: "a mistake of the caller" in caplog.text)
        assert broken.order.count("end") == 1
        rig.port.feed(b"unharmed")
        assert read_exactly(rig.far, 8) == b"unharmed"


def test_ports_are_fed_from_many_threads(pump: PumpModule) -> None:
    with ExitStack() as stack:
        reactor = stack.enter_context(running(pump))
        ports = []
        for _ in range(16):
            far, near = socket_pair("socketpair")
            stack.enter_context(far)
            owner = Owner()
            ports.append((far, owner, reactor.add_port(near, owner)))

        def feed(port: PortLike, seed: int) -> None:
            source = random.Random(seed)
            for _ in range(50):
                port.feed(source.randbytes(2000))
            port.feed_eof()

        threads = [
            threading.Thread(target=feed, args=(port, seed))
            for seed, (_, _, port) in enumerate(ports)
        ]
        for thread in threads:
            thread.start()
        for seed, (far, owner, _) in enumerate(ports):
            source = random.Random(seed)
            expected = b"".join(source.randbytes(2000) for _ in range(50))
            assert read_all(far) == expected
            owner.wait_for(consumed=100_000)
        for thread in threads:
            thread.join()


@POLLERS
def test_closing_the_reactor_resets_ports_and_leaves_no_descriptor(
    pump: PumpModule, poller: str
) -> None:
    fds = open_fds()
    with closing(Rig(pump, "tcp", poller)) as rig:
        rig.port.feed(bytes(16_000_000))
        rig.reactor.close()
        error = rig.owner.wait_end()
        assert error is not None
        assert error.errno == errno.ECONNABORTED
        with pytest.raises(ConnectionResetError):
            read_all(rig.far)
    assert open_fds() == fds


def test_one_port_works_beside_hundreds_of_idle_ones(pump: PumpModule) -> None:
    with ExitStack() as stack:
        rig = stack.enter_context(closing(Rig(pump, "socketpair")))
        for _ in range(300):
            far, near = socket_pair("socketpair")
            stack.enter_context(far)
            rig.reactor.add_port(near, Owner())
        for turn in range(1, 200):
            rig.port.feed(b"x" * 100)
            assert len(read_exactly(rig.far, 100)) == 100
            rig.port.grant(100)
            rig.far.sendall(b"y" * 100)
            rig.owner.wait_for(received=100 * turn)


# Rates.


def test_ports_with_one_rate_keep_it_together_in_each_direction(
    pump: PumpModule,
) -> None:
    rate, size = 1_000_000, 100_000
    with running(pump) as reactor, ExitStack() as stack:
        shared = reactor.add_rate(rate)
        began_s = time.monotonic()
        owners, ports, fars = [], [], []
        for _ in range(3):
            far, near = socket_pair("socketpair")
            fars.append(stack.enter_context(far))
            owners.append(Owner())
            ports.append(reactor.add_port(near, owners[-1], shared))
        with ThreadPoolExecutor(6) as pool:
            for far, port in zip(fars, ports, strict=True):
                pool.submit(far.sendall, b"i" * size)
                pool.submit(read_exactly, far, size)
                port.grant(size)
                port.feed(b"o" * size)
            while any(port.bytes_in + port.bytes_out < 2 * size for port in ports):
                read = sum(port.bytes_in for port in ports)
                written = sum(port.bytes_out for port in ports)
                assert max(read, written) <= rate * (time.monotonic() - began_s)
                time.sleep(0.002)
        for owner in owners:
            owner.wait_for(received=size, consumed=size)
            assert owner.received == b"i" * size


def test_a_port_with_a_rate_closes_behind_its_last_byte(pump: PumpModule) -> None:
    with running(pump) as reactor:
        far, near = socket_pair("tcp")
        owner = Owner()
        port = reactor.add_port(near, owner, reactor.add_rate(1_000_000))
        port.feed(b"x" * 50_000)
        port.close()
        with far:
            assert read_exactly(far, 50_000) == b"x" * 50_000
            assert far.recv(1) == b""
        assert owner.wait_end() is None


def test_a_port_that_is_reset_leaves_its_rate_to_the_others(pump: PumpModule) -> None:
    with running(pump) as reactor, ExitStack() as stack:
        shared = reactor.add_rate(1_000_000)
        ports = []
        for _ in range(2):
            far, near = socket_pair("socketpair")
            stack.enter_context(far)
            ports.append(reactor.add_port(near, Owner(), shared))
            ports[-1].feed(b"x" * 50_000)
        ports[0].reset()
        assert read_exactly(far, 50_000) == b"x" * 50_000


def test_a_rate_belongs_to_its_reactor(pump: PumpModule) -> None:
    with running(pump) as reactor, running(pump) as other:
        far, near = socket_pair("socketpair")
        with far, near, pytest.raises(ValueError, match="reactor that made it"):
            reactor.add_port(near, Owner(), other.add_rate(1000))
        with pytest.raises(ValueError, match="rate_bytes_s must be"):
            reactor.add_rate(0)
