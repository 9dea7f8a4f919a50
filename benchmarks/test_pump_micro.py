"""What the pump costs by itself, beside a bare splice loop and socat.

    python -m pytest benchmarks/test_pump_micro.py --benchmark-columns=min,median

Bulk runs print MB/s and the CPU seconds per GB of the relaying thread or process alone.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rtunnel.pump import PortLike, implementation
from tests.support.ports import free_port
from tests.support.pumping import Owner, read_exactly, running, socket_pair

BULK_BYTES = 512 * 1024 * 1024
CHUNK_BYTES = 256 * 1024

# Relays two connected sockets to the end; returns the CPU seconds that it took.
Relay = Callable[[socket.socket, socket.socket], float]


def relay_by(name: str) -> Relay:
    def relay(a: socket.socket, b: socket.socket) -> float:
        started_s = time.thread_time()
        module = implementation("pump" if name == "pump" else "python")
        module.relay(a, b)
        return time.thread_time() - started_s

    return relay


def splice_loop(a: socket.socket, b: socket.socket) -> float:
    """The floor: one direction, blocking, nothing but the two system calls."""
    started_s = time.thread_time()
    read_end, write_end = os.pipe()
    a.settimeout(None)
    b.settimeout(None)
    while n := os.splice(a.fileno(), write_end, CHUNK_BYTES):
        while n:
            n -= os.splice(read_end, b.fileno(), n)
    b.shutdown(socket.SHUT_WR)
    os.close(read_end)
    os.close(write_end)
    return time.thread_time() - started_s


RELAYS = {
    "splice-loop": splice_loop,
    "pump": relay_by("pump"),
    "python": relay_by("python"),
}


def pour(sock: socket.socket) -> None:
    data = bytes(CHUNK_BYTES)
    for _ in range(BULK_BYTES // CHUNK_BYTES):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def swallow(sock: socket.socket) -> int:
    into = bytearray(CHUNK_BYTES)
    total = 0
    while n := sock.recv_into(into):
        total += n
    return total


def connect_when_listening(port: int) -> socket.socket:
    """Connect once: socat serves the first connection and ends with it."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)


def report(benchmark: BenchmarkFixture, cpu_s: list[float], wall_s: float) -> None:
    benchmark.extra_info["cpu_s_per_gb"] = min(cpu_s) / BULK_BYTES * 1e9
    print(
        f"\n{benchmark.name}: {BULK_BYTES / wall_s / 1e6:.0f} MB/s,"
        f" {min(cpu_s) / BULK_BYTES * 1e9:.3f} CPU s/GB"
    )


@pytest.mark.parametrize("name", RELAYS)
def test_bulk_through_tcp(benchmark: BenchmarkFixture, name: str) -> None:
    cpu_s: list[float] = []
    best_s = [float("inf")]

    def transfer() -> None:
        far_a, near_a = socket_pair("tcp")
        far_b, near_b = socket_pair("tcp")
        with far_a, near_a, far_b, near_b:
            sender = threading.Thread(target=pour, args=(far_a,))
            relay = threading.Thread(
                target=lambda: cpu_s.append(RELAYS[name](near_a, near_b))
            )
            started_s = time.perf_counter()
            sender.start()
            relay.start()
            assert swallow(far_b) == BULK_BYTES
            best_s[0] = min(best_s[0], time.perf_counter() - started_s)
            far_b.close()
            sender.join()
            far_a.close()
            relay.join()

    benchmark.pedantic(transfer, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    report(benchmark, cpu_s, best_s[0])


def test_bulk_through_socat(benchmark: BenchmarkFixture) -> None:
    socat = shutil.which("socat")
    if socat is None:
        pytest.fail("socat is the peer here: apt-get install socat")
    cpu_s: list[float] = []
    best_s = [float("inf")]

    def transfer() -> None:
        port = free_port()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with socket.create_server(("127.0.0.1", 0)) as target:
            command = [
                *(socat, "-b", str(CHUNK_BYTES)),
                f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr",
                f"TCP:127.0.0.1:{target.getsockname()[1]}",
            ]
            process = subprocess.Popen(command)
            with connect_when_listening(port) as far_a:
                far_b = target.accept()[0]
                sender = threading.Thread(target=pour, args=(far_a,))
                started_s = time.perf_counter()
                sender.start()
                with far_b:
                    assert swallow(far_b) == BULK_BYTES
                best_s[0] = min(best_s[0], time.perf_counter() - started_s)
                sender.join()
        process.wait(30)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )

    benchmark.pedantic(transfer, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    report(benchmark, cpu_s, best_s[0])


@pytest.mark.parametrize("name", ["pump", "python"])
def test_round_trip_through_a_pair(benchmark: BenchmarkFixture, name: str) -> None:
    module = implementation("pump" if name == "pump" else "python")
    far_a, near_a = socket_pair("tcp")
    far_b, near_b = socket_pair("tcp")
    with far_a, far_b, running(module) as reactor:
        reactor.add_pair(near_a, near_b)

        def round_trip() -> None:
            far_a.sendall(b"x" * 64)
            far_b.sendall(read_exactly(far_b, 64))
            read_exactly(far_a, 64)

        benchmark(round_trip)


@pytest.mark.parametrize("name", ["pump", "python"])
def test_round_trip_through_a_port(benchmark: BenchmarkFixture, name: str) -> None:
    class Echo(Owner):
        port: PortLike

        def on_readable(self, data: bytes) -> None:
            self.port.feed(data)
            self.port.grant(len(data))

    module = implementation("pump" if name == "pump" else "python")
    far, near = socket_pair("tcp")
    with closing(far), running(module) as reactor:
        echo = Echo()
        echo.port = reactor.add_port(near, echo)
        echo.port.grant(65536)

        def round_trip() -> None:
            far.sendall(b"x" * 64)
            read_exactly(far, 64)

        benchmark(round_trip)
