"""What becomes of streams when our own process is stopped or short of descriptors.

docs/faults.md has a row for each test. The first fixture takes half a minute, most of
which it waits for; the others run beside it.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.support.command import Command, open_arguments
from tests.support.ports import free_port
from tests.support.shortage import short_of_descriptors
from tests.support.sshd import Sshd
from tests.support.tunnels import (
    BACKENDS,
    Target,
    echo,
    read_all,
    read_exactly,
    visit,
)

STREAMS = 3
STREAM_BYTES = 200_000_000
# What the portable backends move in the same time.
PORTABLE_STREAM_BYTES = 20_000_000
STOPPED_S = 30.0
CHUNK_BYTES = 1 << 18
# Of a process that waits: a loop that spins would take all of them.
MOST_IDLE_CPU_SHARE = 0.5


def patient_echo(conn: socket.socket) -> None:
    conn.settimeout(4 * STOPPED_S)
    echo(conn)


def echo_stream(port: int, count: int, moved: list[int], index: int) -> tuple[str, str]:
    """Send `count` bytes and read them back; return both digests."""
    source = random.Random(index)
    sent, got = hashlib.sha256(), hashlib.sha256()

    def send(sock: socket.socket) -> None:
        left = count
        while left:
            data = source.randbytes(min(CHUNK_BYTES, left))
            sent.update(data)
            sock.sendall(data)
            left -= len(data)
        sock.shutdown(socket.SHUT_WR)

    with visit(port) as sock:
        sock.settimeout(4 * STOPPED_S)
        sender = threading.Thread(target=send, args=(sock,))
        sender.start()
        while data := sock.recv(CHUNK_BYTES):
            got.update(data)
            moved[index] += len(data)
        sender.join()
    return sent.hexdigest(), got.hexdigest()


def through_it_all(sshd: Sshd, backend: str) -> list[tuple[str, str]]:
    """Echo three streams while the process is stopped, starved, and visited in vain."""
    count = STREAM_BYTES if backend == "engine" else PORTABLE_STREAM_BYTES
    moved = [0] * STREAMS
    with Target(patient_echo) as target:
        forwards = [f"-R127.0.0.1:0:{target.spec}"] * STREAMS
        forwards.append(f"-R127.0.0.1:0:127.0.0.1:{free_port()}")  # nobody is there
        options = ("-v", "-o", "RekeyLimit=32M", *forwards)
        with (
            Command(
                *open_arguments(sshd, *options, f"{sshd.user}@127.0.0.1"),
                RTUNNEL_BACKEND=backend,
            ) as command,
            ThreadPoolExecutor(STREAMS) as pool,
        ):
            ports = [command.port() for _ in forwards]
            streams = [
                pool.submit(echo_stream, ports[i], count, moved, i)
                for i in range(STREAMS)
            ]

            def wait_moved(enough: Callable[[], bool]) -> None:
                while not enough():
                    for stream in streams:
                        if stream.done():
                            stream.result()  # raises what broke it off
                    if all(stream.done() for stream in streams):
                        return  # no more will move; their digests say what did
                    time.sleep(0.01)

            try:
                wait_moved(lambda: min(moved) >= count // 10)
                with visit(ports[-1]) as in_vain:
                    assert read_all(in_vain) == b""
                command.send(signal.SIGSTOP)
                time.sleep(STOPPED_S)
                stopped_at = list(moved)
                command.send(signal.SIGCONT)
                with short_of_descriptors(command.process.pid):
                    wait_moved(lambda: sum(moved) >= sum(stopped_at) + count // 10)
                return [stream.result() for stream in streams]
            except OSError as error:
                error.add_note(f"at {moved} of {count} bytes: {command.errors()}")
                raise


@pytest.fixture(scope="module", autouse=True)
def journeys(sshd: Sshd) -> Iterator[dict[str, Future[list[tuple[str, str]]]]]:
    """The streams of each backend, under way since the first test of this file."""
    with ThreadPoolExecutor(len(BACKENDS)) as pool:
        yield {
            backend: pool.submit(through_it_all, sshd, backend) for backend in BACKENDS
        }


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_process_without_descriptors_turns_visitors_away_and_serves_them_later(
    sshd: Sshd, backend: str
) -> None:
    with (
        Target(echo) as target,
        Command(
            *open_arguments(
                sshd, f"-R127.0.0.1:0:{target.spec}", f"{sshd.user}@127.0.0.1"
            ),
            RTUNNEL_BACKEND=backend,
        ) as command,
    ):
        port = command.port()
        with visit(port) as first:
            first.sendall(b"before")
            assert read_exactly(first, 6) == b"before"
            with short_of_descriptors(command.process.pid):
                used_s, since_s = cpu_s(command.process.pid), time.monotonic()
                for _ in range(5):
                    with visit(port) as turned_away:
                        assert read_all(turned_away) == b""
                first.sendall(b"during")
                assert read_exactly(first, 6) == b"during"
                time.sleep(1.0)
                used_s = cpu_s(command.process.pid) - used_s
                assert used_s < MOST_IDLE_CPU_SHARE * (time.monotonic() - since_s)
            first.sendall(b"after")
            assert read_exactly(first, 5) == b"after"
            with visit(port) as second:
                second.sendall(b"again")
                assert read_exactly(second, 5) == b"again"
        command.send(signal.SIGTERM)
        assert command.status() == 0


def test_a_full_disk_under_the_log_stops_nothing(sshd: Sshd, backend: str) -> None:
    with (
        Target(echo) as target,
        open("/dev/full", "w") as full,
        Command(
            *open_arguments(
                sshd, "-v", f"-R127.0.0.1:0:{target.spec}", f"{sshd.user}@127.0.0.1"
            ),
            stderr=full,
            RTUNNEL_BACKEND=backend,
        ) as command,
    ):
        port = command.port()
        for _ in range(3):
            with visit(port) as visitor:
                visitor.sendall(b"served")
                assert read_exactly(visitor, 6) == b"served"
        command.send(signal.SIGTERM)
        assert command.status() == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_go_on_byte_exact_through_stops_rekeys_and_shortage(
    journeys: dict[str, Future[list[tuple[str, str]]]], backend: str
) -> None:
    digests = journeys[backend].result()
    assert len(digests) == STREAMS
    for sent, got in digests:
        assert got == sent
