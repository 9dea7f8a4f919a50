"""When keys are exchanged anew: the limits of one key, and time."""

from __future__ import annotations

import socket
import time
from functools import partial

import pytest

import rtunnel
from tests.support.sshd import Sshd
from tests.support.tunnels import (
    BACKENDS,
    PORT_0,
    TIMEOUT_S,
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


def say(visitor: socket.socket) -> None:
    visitor.sendall(b"still here")
    assert read_exactly(visitor, 10) == b"still here"


def await_rekeys(transport: rtunnel.Transport, count: int, meanwhile) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while transport.packetizer.rekeys < count:
        assert time.monotonic() < deadline, "no key exchange"
        meanwhile()
