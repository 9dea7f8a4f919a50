"""What is set on sockets that carry SSH, or what goes through it."""

from __future__ import annotations

import socket
from typing import Any


def set_nodelay(sock: Any) -> None:
    """Set TCP_NODELAY where `sock` is a TCP socket; leave others alone.

    Nagle's algorithm holds a small packet back until the last one is acknowledged,
    which costs an interactive channel 40 ms per key (delayed ACK).
    """
    if isinstance(sock, socket.socket) and sock.family in (
        socket.AF_INET,
        socket.AF_INET6,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
