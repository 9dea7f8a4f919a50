"""A link that can be frozen, cut or slow: what stands between client and server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

# What one packet of a network carries.
SEGMENT_BYTES = 1448


class Link:
    """A TCP proxy to `port`; `freeze()` makes it a black hole."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._flowing = threading.Event()  # of new connections
        self._flowing.set()
        self._frozen: list[threading.Event] = []
        self._ended = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.taken = 0  # connections, ever
        self._piece_bytes = 65536
        self._late_s: Callable[[], float] = lambda: 0.0
        self._conns: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def freeze(self) -> None:
        """Pass nothing on from now on."""
        self._flowing.clear()

    def delay(self, late_s: Callable[[], float]) -> None:
        """Pass on segment by segment, each as late as `late_s()` says.

        What comes behind it waits: TCP delivers in order.
        """
        self._piece_bytes, self._late_s = SEGMENT_BYTES, late_s

    def freeze_those_that_stand(self) -> None:
        """Pass nothing on from now on, but let new connections through."""
        self._flowing.clear()
        self._frozen.append(self._flowing)
        self._flowing = threading.Event()
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection that stands, on both sides."""
        conns, self._conns = self._conns, []
        for pair in conns:
            for conn in pair:
                with contextlib.suppress(OSError):
                    conn.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    conn.shutdown(socket.SHUT_RD)
                conn.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                self.taken += 1
                try:
                    far = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    near.close()  # nobody is there
                    continue
                self._conns.append((near, far))
                self._threads = [each for each in self._threads if each.is_alive()]
                flowing = self._flowing
                for a, b in ((near, far), (far, near)):
                    thread = threading.Thread(
                        target=self._pass, args=(a, b, flowing.wait), daemon=True
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pass(
        self, source: socket.socket, sink: socket.socket, wait: Callable[[], object]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self._piece_bytes):
                wait()
                time.sleep(self._late_s())
                if self._ended:
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        for flowing in (*self._frozen, self._flowing):
            flowing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for pair in self._conns:
            for conn in pair:
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for pair in self._conns:
            for conn in pair:
                conn.close()
