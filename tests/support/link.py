"""A link that can be frozen: both ends stay connected, and nothing comes through."""

from __future__ import annotations

import contextlib
import socket
import threading


class Link:
    """A TCP proxy to `port`; `freeze()` makes it a black hole."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._flowing = threading.Event()
        self._flowing.set()
        self._ended = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._conns: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def freeze(self) -> None:
        """Pass nothing on from now on."""
        self._flowing.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._conns += [near, far]
                for a, b in ((near, far), (far, near)):
                    thread = threading.Thread(
                        target=self._pass, args=(a, b), daemon=True
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if self._ended:
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        self._flowing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for conn in self._conns:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for conn in self._conns:
            conn.close()
