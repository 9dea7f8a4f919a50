"""Find free ports, and wait until something listens on one."""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
# The state of a listening socket in /proc/net/tcp.
LISTENING: Final = "0A"
# A port of the kernel's own choice may be an outgoing connection's before a server has
# it. These are below those that Linux gives to connections (ip_local_port_range, from
# 32768 on) and that x2goserver gives to its sessions (30001 on), and above those of
# well-known servers.
FIRST_PORT: Final = 10000
LAST_PORT: Final = 29999
TRIES_MAX: Final = 1000

# Not seeded: processes that look side by side must not look in the same order.
_random = random.SystemRandom()
# Protected by _giving.
_given: set[int] = set()
_giving = threading.Lock()


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago; no port twice.

    Any thread; waits for no peer. Raises OSError when it finds none.
    """
    with _giving:
        for _ in range(TRIES_MAX):
            port = _random.randrange(FIRST_PORT, LAST_PORT + 1)
            if port in _given:
                continue
            with socket.socket() as sock:
                try:
                    sock.bind((LOOPBACK, port))
                except OSError:
                    continue
            _given.add(port)
            return port
    raise OSError(f"no free port of {FIRST_PORT} to {LAST_PORT} was found")


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
