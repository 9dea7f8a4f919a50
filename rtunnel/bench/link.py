"""A long or narrow link in user space: delay, rate and a router's queue, each way.

    python -m rtunnel.bench.link TO_PORT RATE_BYTES_S RTT_S QUEUE_BYTES

prints its port. Bytes that come in wait in the queue (at most `queue_bytes`; more stay
with the sender, as TCP makes them) until the link has sent them at its rate, and arrive
half a round trip later. Nothing is lost or reordered.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from typing import Final

CHUNK_BYTES: Final = 65536
# Small beside the queue, so that the queue of the link is the one that is configured;
# but no smaller than what TCP needs to keep moving at 1 Gbit/s.
RECEIVE_BUFFER_BYTES: Final = 16384
RECEIVE_BUFFER_DIVISOR: Final = 16


class Direction:
    """One way of the link: a thread that takes bytes in, one that lets them out."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        rate_bytes_s: float,
        delay_s: float,
        queue_bytes: int,
    ) -> None:
        self._source = source
        self._sink = sink
        self._rate = rate_bytes_s
        self._delay_s = delay_s
        # What the router takes in one piece: a few packets, not its whole queue.
        self._chunk_bytes = max(min(queue_bytes // 8, CHUNK_BYTES), 1500)
        self._queue_s = queue_bytes / rate_bytes_s
        self._free_s = 0.0  # when the link has sent all it was given
        self._changed = threading.Condition()
        self._line: deque[tuple[float, bytes]] = deque()
        for run in (self._take, self._let_out):
            threading.Thread(target=run, daemon=True).start()

    def _take(self) -> None:
        data = b" "
        while data:
            wait_s = self._free_s - time.monotonic() - self._queue_s
            if wait_s > 0:
                time.sleep(wait_s)
            try:
                data = self._source.recv(self._chunk_bytes)
            except OSError:
                data = b""
            now_s = time.monotonic()
            self._free_s = max(self._free_s, now_s) + len(data) / self._rate
            with self._changed:
                self._line.append((self._free_s + self._delay_s, data))
                self._changed.notify()

    def _let_out(self) -> None:
        while True:
            with self._changed:
                while not self._line:
                    self._changed.wait()
                due_s, data = self._line.popleft()
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:
                self._source.close()
                return


def serve(to_port: int, rate_bytes_s: float, rtt_s: float, queue_bytes: int) -> None:
    """Carry each connection over a link of its own to 127.0.0.1:to_port, for ever."""
    buffer_bytes = max(RECEIVE_BUFFER_BYTES, queue_bytes // RECEIVE_BUFFER_DIVISOR)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    while True:
        near, _ = listener.accept()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        far.connect(("127.0.0.1", to_port))
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((near, far), (far, near)):
            Direction(source, sink, rate_bytes_s, rtt_s / 2, queue_bytes)


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
