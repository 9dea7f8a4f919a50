"""Free ports, and who listens on one: what the benchmarks have, and one more."""

from __future__ import annotations

import socket

from rtunnel.bench.ports import bound, free_port, wait_listening

__all__ = ["bound", "free_port", "listens", "wait_listening"]


def listens(port: int) -> bool:
    """Say whether something accepts connections at 127.0.0.1:port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except (ConnectionRefusedError, ConnectionResetError):
        # Reset: it was closed while this was in its queue.
        return False
    return True
