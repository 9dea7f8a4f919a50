"""Find free ports, and wait until something listens on one."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
# The state of a listening socket in /proc/net/tcp.
LISTENING: Final = "0A"


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


def wait_listening(port: int, timeout_s: float = 10.0) -> None:
    """Block until 127.0.0.1:port accepts a connection. Raises OSError if it is late."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((LOOPBACK, port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def bound(port: int) -> bool:
    """Say whether a socket listens on this port, at any address, without visiting."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            local = int(fields[1].rpartition(":")[2], 16)
            if local == port and fields[3] == LISTENING:
                return True
    return False
