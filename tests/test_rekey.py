"""When keys are exchanged anew: the limits of one key, and time."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import paramiko
import pytest

import rtunnel
from rtunnel.errors import DisconnectCode, ProtocolError
from rtunnel.ssh.packetizer import KEX_TIMEOUT_S
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    BACKENDS,
    PORT_0,
    TIMEOUT_S,
    background,
    echo,
    open_transport,
    read_exactly,
    visit,
)


@pytest.fixture
def unconnected() -> socket.socket:
    return socket.socket()


def test_one_key_serves_2_to_the_32_blocks_2_to_the_31_packets_or_an_hour(
    unconnected: socket.socket,
) -> None:
    with unconnected:
        packetizer = rtunnel.Transport(unconnected).packetizer
        assert packetizer.rekey_bytes == 2**32 * 16
        assert packetizer.rekey_packets == 2**31
        assert packetizer.rekey_s == 3600


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_old_are_exchanged_while_bytes_move(
    sshd: Sshd, backend: str
) -> None:
    aged = partial(rtunnel.Transport, backend=backend, rekey_s=0.3)
    transport = open_transport(sshd, aged)  # type: ignore[arg-type]
    with rtunnel.Tunnel(transport) as tunnel:
        assert tunnel.backend == backend
        with visit(tunnel.listen(PORT_0, to=echo).port) as visitor:
            await_rekeys(transport, 2, lambda: say(visitor))


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_old_are_exchanged_while_nothing_moves(
    sshd: Sshd, backend: str
) -> None:
    aged = partial(rtunnel.Transport, backend=backend, rekey_s=0.3)
    transport = open_transport(sshd, aged)  # type: ignore[arg-type]
    with rtunnel.Tunnel(transport) as tunnel:
        await_rekeys(transport, 2, lambda: time.sleep(0.05))
        with visit(tunnel.listen(PORT_0, to=echo).port) as visitor:
            say(visitor)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("engine", rtunnel.Transport),
        *itertools.product(("pump", "python"), (rtunnel.Transport, paramiko.Transport)),
    ],
)
def test_a_key_exchange_may_take_longer_than_paramiko_waits(
    tmp_path: Path,
    backend: str,
    kind: type[paramiko.Transport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a slow link, or where a process or its machine is stopped meanwhile."""
    with exchanging(tmp_path, backend, kind) as (tunnel, visitor, own_sshd):
        with clock_of_paramiko(monkeypatch, lambda: time.time() + 60):
            time.sleep(0.5)  # in which who waits looks at it
        own_sshd.thaw_sessions()
        assert read_exactly(visitor, 10) == b"still here"
        assert tunnel.transport.is_active()


@pytest.mark.parametrize("backend", ["pump", "python"])
def test_an_exchange_that_never_ends_is_why_a_stock_transport_is_given_up(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exchanging(tmp_path, backend, paramiko.Transport) as (tunnel, *_):
        begun_s = time.time()
        with (
            clock_of_paramiko(
                monkeypatch,
                lambda: begun_s + KEX_TIMEOUT_S * (time.time() - begun_s),
            ),
            pytest.raises(ProtocolError, match="Key-exchange timed out") as e,
        ):
            tunnel.wait(TIMEOUT_S)
        assert e.value.code is DisconnectCode.KEY_EXCHANGE_FAILED


@contextlib.contextmanager
def exchanging(
    folder: Path, backend: str, kind: type[paramiko.Transport]
) -> Iterator[tuple[rtunnel.Tunnel, socket.socket, Sshd]]:
    """A tunnel with bytes to send to a visitor, in an exchange that does not go on."""
    go = threading.Event()

    def serve(sock: socket.socket, visitor: rtunnel.Visitor) -> None:
        assert go.wait(TIMEOUT_S)
        sock.sendall(b"still here")

    def exchange(transport: paramiko.Transport) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError):
            transport.renegotiate_keys()

    with (
        Sshd(folder) as own_sshd,
        rtunnel.Tunnel(open_transport(own_sshd, kind), backend=backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, to=serve)
        with visit(listener.port) as visitor:
            wait_until(lambda: listener.stats().connections_total == 1)
            own_sshd.freeze_sessions()
            with background(lambda: exchange(tunnel.transport)):
                wait_until(lambda: not tunnel.transport.clear_to_send.is_set())
                go.set()
                time.sleep(0.5)  # until who sends it waits
                yield tunnel, visitor, own_sshd


@contextlib.contextmanager
def clock_of_paramiko(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[], float]
) -> Iterator[None]:
    """Let paramiko's transports see another time of day."""
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(time=read, sleep=time.sleep)
        patch.setattr(paramiko.transport, "time", clock)
        yield


def say(visitor: socket.socket) -> None:
    visitor.sendall(b"still here")
    assert read_exactly(visitor, 10) == b"still here"


def await_rekeys(transport: rtunnel.Transport, count: int, meanwhile) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while transport.packetizer.rekeys < count:
        assert time.monotonic() < deadline, "no key exchange"
        meanwhile()
