"""Sockets, a running reactor and a port's owner, for the tests of the pump."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rtunnel.pump import PairEnd, PumpModule, ReactorLike

TIMEOUT_S = 30.0


def open_fds() -> set[str]:
    """Return what this process has open, without the look itself."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{link.name} {os.readlink(link)}")
        except OSError:
            continue
    return found


def socket_pair(kind: str, folder: Path | None = None) -> tuple[socket.socket, ...]:
    """Return two connected sockets: "tcp", "unix" (by a path) or "socketpair"."""
    if kind == "socketpair":
        pair = socket.socketpair()
    else:
        family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
        with socket.socket(family) as listener:
            path = str((folder or Path("/nonexistent")) / "s")
            listener.bind(("127.0.0.1", 0) if kind == "tcp" else path)
            listener.listen(1)
            client = socket.socket(family)
            client.connect(listener.getsockname())
            pair = (client, listener.accept()[0])
            if kind == "unix":
                os.unlink(path)
    for sock in pair:
        sock.settimeout(TIMEOUT_S)
    return pair


def send_reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the stream."""
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def read_exactly(sock: socket.socket, n: int) -> bytes:
    """Read `n` bytes, or fail at the end of the stream."""
    data = bytearray()
    while len(data) < n:
        chunk = sock.recv(n - len(data))
        assert chunk, f"the stream ended after {len(data)} of {n} bytes"
        data += chunk
    return bytes(data)


@contextmanager
def running(module: PumpModule, poller: str = "auto") -> Iterator[ReactorLike]:
    """Run a reactor on a thread; afterwards it is closed, and its thread has ended."""
    reactor = module.Reactor(poller)  # type: ignore[arg-type]
    thread = threading.Thread(target=reactor.run, name="reactor")
    thread.start()
    try:
        yield reactor
    finally:
        reactor.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


class Ends:
    """An `on_end` for pairs that can be waited for."""

    def __init__(self) -> None:
        self.all: list[PairEnd] = []
        self._changed = threading.Condition()

    def __call__(self, end: PairEnd) -> None:
        with self._changed:
            self.all.append(end)
            self._changed.notify_all()

    def wait(self, count: int = 1) -> PairEnd:
        """Wait for `count` ends; return the last of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, TIMEOUT_S)
        return self.all[-1]


class Owner:
    """PortEvents that remember what happened, in order."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.consumed = 0
        self.eof = False
        self.ended = False
        self.error: OSError | None = None
        self.order: list[str] = []
        self._changed = threading.Condition()

    def _note(self, name: str) -> None:
        self.order.append(name)
        self._changed.notify_all()

    def on_readable(self, data: bytes) -> None:
        with self._changed:
            self.received += data
            self._note("readable")

    def on_eof(self) -> None:
        with self._changed:
            self.eof = True
            self._note("eof")

    def on_consumed(self, n: int) -> None:
        with self._changed:
            self.consumed += n
            self._note("consumed")

    def on_end(self, error: OSError | None) -> None:
        with self._changed:
            self.error = error
            self.ended = True
            self._note("end")

    def wait_for(self, *, received: int = 0, consumed: int = 0) -> None:
        """Wait until that many bytes were read and consumed."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.received) >= received and self.consumed >= consumed,
                TIMEOUT_S,
            ), (len(self.received), self.consumed)

    def wait_eof(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.eof, TIMEOUT_S)

    def wait_end(self) -> OSError | None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended, TIMEOUT_S)
        return self.error
