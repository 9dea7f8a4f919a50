"""What comes and goes again and again leaves nothing behind."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtunnel import Supervisor
from tests.support.link import Link
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until
from tests.support.supervising import (
    PATIENCE_S,
    TomlFile,
    info,
    server_table,
    wait_ready,
)
from tests.support.tunnels import Target, ask, say

# Until caches, pools and the allocator have what they want.
WARM_UP = 0.2
# A connection that stays would cost more than either by itself: its transport, its
# buffers and its window.
MOST_BYTES = 30_000  # of C, for each cycle
MOST_OBJECTS = 100  # of Python


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """Let nobody keep records: they have errors, and those what was in their frames."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def file(tmp_path: Path) -> TomlFile:
    return TomlFile(tmp_path / "tunnels.toml")


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(say(b"hello")) as hello:
        yield hello


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Mallinfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> tuple[int, int]:
    """Return the bytes that C has allocated, and the objects of Python.

    Not what the kernel has given: of that, allocators keep more or less for later.
    """
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    info = mallinfo2()
    return info.uordblks + info.hblkhd, sys.getallocatedblocks()


def leaves_nothing(cycle: Callable[[int], None], cycles: int = 200) -> None:
    """Run the cycles; threads, descriptors and memory must not grow with them."""
    warm = int(cycles * WARM_UP)
    for number in range(warm):
        cycle(number)
    threads, files = threading.active_count(), descriptors()
    bytes_before, objects_before = in_use()
    for number in range(warm, cycles):
        cycle(number)
    # What ends by itself may take a moment.
    wait_until(lambda: threading.active_count() <= threads, PATIENCE_S)
    wait_until(lambda: descriptors() <= files, PATIENCE_S)
    bytes_after, objects_after = in_use()
    assert (bytes_after - bytes_before) / (cycles - warm) < MOST_BYTES
    assert (objects_after - objects_before) / (cycles - warm) < MOST_OBJECTS


def test_connections_that_are_cut_again_and_again_leave_nothing(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    ports = [free_port() for _ in range(4)]
    retry = {"first_s": 0.1, "max_s": 0.1, "stable_after_s": 0}
    retry |= {"port_taken_first_s": 1, "port_taken_max_s": 1}
    with Link(sshd.port) as link:
        servers = {
            f"s{port}": server_table(
                sshd,
                link.port,
                tunnels={"t": {"listen": port, "to": target.spec, "health": {}}},
                retry=retry,
            )
            for port in ports
        }
        with Supervisor(file.write(**servers)) as supervisor:
            wait_ready(supervisor)

            def cut(number: int) -> None:
                link.cut()
                for name in servers:
                    wait_until(
                        lambda name=name: info(supervisor, name).reconnects > number,
                        PATIENCE_S,
                    )
                if number % 10 == 0:
                    wait_ready(supervisor)
                    assert [ask(port) for port in ports] == [b"hello"] * 4

            leaves_nothing(cut, 50)


def test_reloads_that_change_everything_leave_nothing(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    ports = free_port(), free_port()

    def write(number: int) -> Path:
        health = {"interval_s": 1 + number % 2}
        spec = {"listen": ports[number % 2], "to": target.spec, "health": health}
        return file.write(a=server_table(sshd, tunnels={f"t{number}": spec}))

    with Supervisor(write(0), watch=False) as supervisor:

        def reload(number: int) -> None:
            write(number)
            supervisor.reload()
            wait_ready(supervisor)
            if number % 10 == 0:
                assert ask(ports[number % 2]) == b"hello"

        leaves_nothing(reload)


def test_supervisors_that_are_closed_leave_nothing(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    spec = {"listen": free_port(), "to": target.spec, "health": {}}
    file.write(a=server_table(sshd, tunnels={"t": spec}))

    def start_and_close(number: int) -> None:
        with Supervisor(file.path) as supervisor:
            # Some while they connect, some while they listen.
            if number % 4 == 0:
                wait_ready(supervisor)

    leaves_nothing(start_and_close, 60)
