"""Load for a tunnel, each part a process of its own so that none slows the peer.

    python -m rtunnel.bench.load target sink|source|echo|crowd BYTES COUNTER

listens on 127.0.0.1, prints its port, and serves: it swallows, pours out BYTES, or
echoes, with a thread for each connection; `crowd` echoes for thousands on one thread.

    python -m rtunnel.bench.load visit PORT ACTION NUMBER...

connects and does one of `ACTIONS`. Results are lines of JSON. A visitor stays until its
stdin ends, so that its tunnel can be looked at while everything is still open.

COUNTER is a file whose first eight bytes hold what arrived so far (or "-"): rates are
measured where the bytes come out, without a message on the way.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import random
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

CHUNK_BYTES: Final = 1 << 20
ECHO_BYTES: Final = 64
BURST_BYTES: Final = 16
# More than the peers ever have unanswered.
BACKLOG: Final = 4096
# A source address has so many ports towards one port of the server; then comes the
# next: 127.0.0.1, 127.0.0.2, ...
PORTS_PER_ADDRESS: Final = 20_000
# More than `hold` ever holds.
MOST_HELD: Final = 20_000
# Visitors that come at once when many are to stay.
HOLD_AT_ONCE: Final = 50
COUNTER: Final = struct.Struct("Q")
ENDLESS: Final = 1 << 60


class Counter:
    """A number in a file, which another process reads while it grows."""

    def __init__(self, path: str) -> None:
        self._memory = None
        self._total = 0
        self._lock = threading.Lock()
        if path != "-":
            with open(path, "r+b") as file:
                self._memory = mmap.mmap(file.fileno(), COUNTER.size)

    def add(self, count: int) -> None:
        """Count what arrived."""
        if self._memory is not None:
            with self._lock:
                self._total += count
                COUNTER.pack_into(self._memory, 0, self._total)

    @staticmethod
    def make(path: Path) -> None:
        """Make the file, at zero."""
        path.write_bytes(COUNTER.pack(0))

    @staticmethod
    def read(path: Path) -> int:
        """Return the number in the file."""
        return int(COUNTER.unpack(path.read_bytes())[0])


# -- targets ---------------------------------------------------------------------------


def serve(kind: str, count: int, counter: Counter) -> None:
    """Serve connections for ever."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    print(listener.getsockname()[1], flush=True)
    if kind == "crowd":
        _serve_crowd(listener)
    while True:
        conn, _ = listener.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arguments = (kind, conn, count, counter)
        threading.Thread(target=_serve_one, args=arguments).start()


def _serve_one(kind: str, conn: socket.socket, count: int, counter: Counter) -> None:
    # Who is cut off in the middle has been measured already.
    with conn, contextlib.suppress(OSError):
        if kind == "source":
            _pour(conn, count)
            conn.shutdown(socket.SHUT_WR)
            conn.recv(1)
        elif kind == "sink":
            conn.sendall(COUNTER.pack(_swallow(conn, counter)))
        else:
            while data := conn.recv(65536):
                conn.sendall(data)


def _serve_crowd(listener: socket.socket) -> None:
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            conn = key.fileobj
            assert isinstance(conn, socket.socket)
            if conn is listener:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        visitor, _ = listener.accept()
                        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        selector.register(visitor, selectors.EVENT_READ)
                continue
            try:
                data = conn.recv(65536)
                if data:
                    conn.sendall(data)  # a few bytes: they fit
            except OSError:
                data = b""
            if not data:
                selector.unregister(conn)
                conn.close()


def _pour(conn: socket.socket, count: int) -> None:
    chunk = memoryview(bytes(CHUNK_BYTES))
    while count > 0:
        conn.sendall(chunk[:count])
        count -= CHUNK_BYTES


def _swallow(conn: socket.socket, counter: Counter) -> int:
    buffer = bytearray(CHUNK_BYTES)
    total = 0
    while got := conn.recv_into(buffer):
        counter.add(got)
        total += got
    return total


# -- visitors --------------------------------------------------------------------------


def _say(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def _connect(port: int, number: int = 0) -> socket.socket:
    address = number // PORTS_PER_ADDRESS
    source = (f"127.0.0.{1 + address}", 0) if address else None
    conn = socket.create_connection(("127.0.0.1", port), source_address=source)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return conn


def _receive(conn: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        data = conn.recv(count - len(received))
        if not data:
            raise ConnectionError("the tunnel closed a connection too early")
        received += data
    return received


def _round_trip(conn: socket.socket) -> float:
    begin_s = time.perf_counter()
    conn.sendall(bytes(ECHO_BYTES))
    _receive(conn, ECHO_BYTES)
    return time.perf_counter() - begin_s


def send(port: int, count: float) -> None:
    """Send so many bytes to a sink, and wait until it says how many it swallowed."""
    with _connect(port) as conn:
        begin_s = time.perf_counter()
        _pour(conn, int(count))
        conn.shutdown(socket.SHUT_WR)
        (arrived,) = COUNTER.unpack(_receive(conn, COUNTER.size))
        _say({"bytes": arrived, "seconds": time.perf_counter() - begin_s})
        sys.stdin.read()


def receive(port: int, count: float) -> None:
    """Receive all that a source has, which should be so many bytes."""
    with _connect(port) as conn:
        begin_s = time.perf_counter()
        got = _swallow(conn, Counter("-"))
        _say({"bytes": got, "seconds": time.perf_counter() - begin_s})
        sys.stdin.read()


def echo(port: int, rounds: float) -> None:
    """Measure so many round trips of 64 bytes, one after the other."""
    with _connect(port) as conn:
        _round_trip(conn)  # the channel is open after this one
        _say({"times_s": [_round_trip(conn) for _ in range(int(rounds))]})
        sys.stdin.read()


def beat(port: int, interval_s: float, warm_s: float, seconds: float) -> None:
    """Send 64 bytes every `interval_s` and measure when they come back.

    Says so when `warm_s` are over, and measures from then on. A message that cannot be
    sent in time counts from when it was due: who waits for it waits that long.
    """
    with _connect(port) as conn:
        _round_trip(conn)
        conn.setblocking(False)
        beats = _Beats(conn, interval_s)
        beats.run(warm_s)
        _say({})
        beats.times_s.clear()
        beats.run(seconds)
        _say({"times_s": beats.times_s})
        sys.stdin.read()


class _Beats:
    def __init__(self, conn: socket.socket, interval_s: float) -> None:
        self._conn = conn
        self._interval_s = interval_s
        self._next_s = time.perf_counter()
        self._due_s: list[float] = []  # of those that are not back yet
        self._unsent = 0
        self._got = 0
        self.times_s: list[float] = []
        # select(2) waits by microseconds, epoll by milliseconds.
        self._selector = selectors.SelectSelector()
        self._selector.register(conn, selectors.EVENT_READ)

    def run(self, seconds: float) -> None:
        end_s = time.perf_counter() + seconds
        while (now_s := time.perf_counter()) < end_s:
            if now_s >= self._next_s:
                self._due_s.append(self._next_s)
                self._next_s += self._interval_s
                self._unsent += ECHO_BYTES
            self._send()
            wait_s = min(self._next_s, end_s) - time.perf_counter()
            if self._selector.select(max(wait_s, 0.0)):
                self._take()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent -= self._conn.send(bytes(self._unsent))

    def _take(self) -> None:
        data = self._conn.recv(65536)
        if not data:
            raise ConnectionError("the tunnel closed a connection too early")
        self._got += len(data)
        now_s = time.perf_counter()
        while self._got >= ECHO_BYTES:
            self._got -= ECHO_BYTES
            self.times_s.append(now_s - self._due_s.pop(0))


def burst(port: int, count: float, at_once: float) -> None:
    """Make so many connections: open, 16 bytes echoed, close."""
    selector = selectors.DefaultSelector()
    left = int(count)

    def begin() -> None:
        nonlocal left
        left -= 1
        conn = _connect(port)
        conn.sendall(bytes(BURST_BYTES))
        selector.register(conn, selectors.EVENT_READ)

    begin_s = time.perf_counter()
    for _ in range(min(int(at_once), left)):
        begin()
    while selector.get_map():
        for key, _ in selector.select():
            conn = key.fileobj
            assert isinstance(conn, socket.socket)
            _receive(conn, BURST_BYTES)
            selector.unregister(conn)
            conn.close()
            if left:
                begin()
    _say({"connections": count, "seconds": time.perf_counter() - begin_s})
    sys.stdin.read()


def hold(port: int) -> None:
    """Keep connections, and obey stdin: `open TOTAL`, `echo COUNT` on random ones."""
    conns: list[socket.socket] = []
    for line in sys.stdin:
        command, number = line.split()
        if command == "open":
            while len(conns) < int(number):
                new = [
                    _connect(port, len(conns) + k)
                    for k in range(min(HOLD_AT_ONCE, int(number) - len(conns)))
                ]
                for conn in new:
                    conn.sendall(bytes(ECHO_BYTES))
                for conn in new:
                    _receive(conn, ECHO_BYTES)
                conns += new
            _say({"open": len(conns)})
        else:
            chosen = random.choices(conns, k=int(number))
            _say({"times_s": [_round_trip(conn) for conn in chosen]})


def swallow(port: int, counter: str) -> None:
    """Receive without end, and count."""
    with _connect(port) as conn:
        _swallow(conn, Counter(counter))


def pour(port: int) -> None:
    """Send without end."""
    with _connect(port) as conn:
        _pour(conn, ENDLESS)


NUMERIC: Final[dict[str, Callable[..., None]]] = {
    "send": send,
    "receive": receive,
    "echo": echo,
    "beat": beat,
    "burst": burst,
    "hold": hold,
    "pour": pour,
}
ACTIONS: Final = (*NUMERIC, "swallow")

if __name__ == "__main__":
    role, first, *rest = sys.argv[1:]
    if role == "target":
        serve(first, int(rest[0]), Counter(rest[1]))
    elif rest[0] == "swallow":
        swallow(int(first), rest[1])
    else:
        NUMERIC[rest[0]](int(first), *(float(number) for number in rest[1:]))
