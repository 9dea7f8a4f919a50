"""What other programs of the user can ask a client that shows a session.

The client listens on a Unix socket in the session's folder, which nobody else can
enter. A request is a line of JSON, {"do": NAME, ...}; so is the answer, {"ok": ...} or
{"error": TEXT}.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rtunnel.errors import RTunnelError
from x2go_session.errors import NoSuchSession, X2GoError

log = logging.getLogger("x2go_session.local")

SOCKET_NAME: Final = "client"
# A request is a word and a path or two.
MOST_REQUEST_BYTES: Final = 64 * 1024
# A share may wait for the server's sshfs, a suspension for the agent.
ANSWER_TIMEOUT_S: Final = 180.0
REQUEST_TIMEOUT_S: Final = 10.0

Request = Mapping[str, Any]
Handlers = Mapping[str, Callable[[Request], object]]


class LocalDoor:
    """Answers requests in a session's folder; each on a thread of its own."""

    def __init__(self, folder: Path, handlers: Handlers) -> None:
        self._handlers = handlers
        self._path = folder / SOCKET_NAME
        self._socket = socket.socket(socket.AF_UNIX)
        self._path.unlink(missing_ok=True)
        with _short(folder) as short:
            self._socket.bind(short)
        self._path.chmod(0o600)
        self._socket.listen()
        self._thread = threading.Thread(
            target=self._accept, name="x2go-local", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(conn,), name="x2go-local-one", daemon=True
            ).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.settimeout(REQUEST_TIMEOUT_S)
            with conn.makefile("rb") as lines:
                line = lines.readline(MOST_REQUEST_BYTES)
            answer = json.dumps(self._answer(line)) + "\n"
            conn.sendall(answer.encode())

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            handler = self._handlers[request["do"]]
        except (ValueError, KeyError, TypeError):
            return {"error": "this client does not know that request"}
        try:
            return {"ok": handler(request)}
        except (X2GoError, RTunnelError, OSError, KeyError) as error:
            return {"error": str(error)}


def ask(folder: Path, request: Request) -> Any:
    """Ask the client that shows the session of this folder; return its answer.

    Blocks until it is done. Raises `NoSuchSession` when no client shows it,
    `X2GoError` with the client's words when it refused.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            with _short(folder) as short:
                sock.connect(short)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise NoSuchSession(
                f"no client on this machine shows {folder.name.removeprefix('S-')}: "
                "resume it first"
            ) from error
    if "error" in answer:
        raise X2GoError(str(answer["error"]))
    return answer.get("ok")


def shown_here(root: Path) -> list[str]:
    """Return the names of the sessions that clients of this user show here."""
    found = []
    for path in sorted(root.glob(f"S-*/{SOCKET_NAME}")):
        with contextlib.suppress(NoSuchSession, X2GoError):
            ask(path.parent, {"do": "ping"})
            found.append(path.parent.name.removeprefix("S-"))
    return found


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A name of the socket that fits into an address of 108 bytes."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET_NAME}"
    finally:
        os.close(handle)
