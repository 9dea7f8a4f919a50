"""A scripted HTTP server: it answers each request with the bytes that the test says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Asked:
    """A request: its first line and headers, and its body."""

    head: str
    body: str


def answer(
    text: str | bytes,
    status: str = "200 OK",
    *headers: str,
    kind: str = "text/plain; charset=utf-8",
) -> bytes:
    """Return the bytes of a whole answer."""
    body = text.encode() if isinstance(text, str) else text
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    lines.append(f"Content-Type: {kind}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class ScriptedBroker:
    """Answers on 127.0.0.1, one connection after the other; the last answer repeats.

    An answer may be pieces, which are sent until the client is gone. None: silence.
    """

    def __init__(self, *answers: bytes | Iterable[bytes] | None) -> None:
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def url(self, form: str = "plain") -> str:
        """Where it is."""
        return f"http://me@127.0.0.1:{self.port}/{form}/"

    def __enter__(self) -> ScriptedBroker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT_S)

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with conn, contextlib.suppress(OSError):
                conn.settimeout(TIMEOUT_S)
                self._attend(conn)

    def _attend(self, conn: socket.socket) -> None:
        stream = conn.makefile("rb")
        head = b"".join(iter(stream.readline, b"\r\n")).decode("latin-1")
        fields = dict(
            line.lower().split(": ", 1) for line in head.splitlines()[1:] if line
        )
        body = stream.read(int(fields.get("content-length", 0)))
        self.asked.append(Asked(head, body.decode("latin-1")))
        said = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if said is None:
            conn.recv(1)
            return
        for piece in [said] if isinstance(said, bytes) else said:
            conn.sendall(piece)
            self.sent_bytes += len(piece)
