"""A client of our SFTP server that says exactly what a test wants said."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.tunnels import TIMEOUT_S
from x2go_session.sftp.folders import SharedFolders
from x2go_session.sftp.protocol import OpenFlag, Reply, Request, Status, string
from x2go_session.sftp.server import SftpServer

NO_ATTRIBUTES = struct.pack(">I", 0)


class Refused(Exception):
    """The server answered with a status that is not OK."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(f"{status.name}: {text}")
        self.status = status


@dataclass
class Answer:
    """A reply: what kind it is, and what comes behind the request's number."""

    kind: Reply
    body: bytes


class RawSftp:
    """Sends requests on a socket and reads the replies."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        self._file = sock.makefile("rb")
        self._number = 0
        self.say(bytes([Request.INIT]) + struct.pack(">I", 3))
        self.version = self.hear()

    def say(self, packet: bytes) -> None:
        """Send one packet, its length before it."""
        self.sock.sendall(struct.pack(">I", len(packet)) + packet)

    def hear(self) -> bytes:
        """Read one packet; nothing at the end of the stream."""
        header = self._file.read(4)
        return self._file.read(struct.unpack(">I", header)[0]) if header else b""

    def ask(self, kind: int, body: bytes) -> Answer:
        """Send a request and read its reply. Raises `Refused`."""
        self._number += 1
        number = struct.pack(">I", self._number)
        self.say(bytes([kind]) + number + body)
        reply = self.hear()
        assert reply[1:5] == number, reply
        answer = Answer(Reply(reply[0]), reply[5:])
        if answer.kind is Reply.STATUS:
            code, length = struct.unpack_from(">II", answer.body)
            if code != Status.OK:
                text = answer.body[8 : 8 + length].decode()
                raise Refused(Status(code), text)
        return answer

    def on_path(self, kind: int, path: bytes, rest: bytes = b"") -> Answer:
        """Send a request about one path."""
        return self.ask(kind, string(path) + rest)

    def extended(self, name: str, body: bytes) -> Answer:
        """Send a request of an extension."""
        return self.ask(Request.EXTENDED, string(name.encode()) + body)

    def open(self, path: bytes, flags: int = OpenFlag.READ) -> bytes:
        """Open a file; return its handle, ready to be sent."""
        rest = struct.pack(">I", flags) + NO_ATTRIBUTES
        return self.on_path(Request.OPEN, path, rest).body

    def opendir(self, path: bytes) -> bytes:
        """Open a folder; return its handle, ready to be sent."""
        return self.on_path(Request.OPENDIR, path).body

    def read(self, handle: bytes, count: int = 1000, offset: int = 0) -> bytes:
        """Read from a file."""
        answer = self.ask(Request.READ, handle + struct.pack(">QI", offset, count))
        return answer.body[4:]

    def write(self, handle: bytes, data: bytes, offset: int = 0) -> None:
        """Write into a file."""
        body = handle + struct.pack(">Q", offset) + string(data)
        self.ask(Request.WRITE, body)

    def close(self, handle: bytes) -> None:
        """Close a handle."""
        self.ask(Request.CLOSE, handle)

    def put(self, path: bytes, data: bytes) -> None:
        """Write a whole file."""
        handle = self.open(path, OpenFlag.WRITE | OpenFlag.CREAT | OpenFlag.TRUNC)
        self.write(handle, data)
        self.close(handle)

    def names(self, path: bytes) -> list[bytes]:
        """List a folder."""
        handle = self.opendir(path)
        found: list[bytes] = []
        while True:
            try:
                body = self.ask(Request.READDIR, handle).body
            except Refused as end:
                if end.status is not Status.EOF:
                    raise
                self.close(handle)
                return found
            at = 4
            for _ in range(struct.unpack_from(">I", body)[0]):
                length = struct.unpack_from(">I", body, at)[0]
                found.append(body[at + 4 : at + 4 + length])
                at += 4 + length
                # The line for people, and seven numbers.
                at += 4 + struct.unpack_from(">I", body, at)[0] + 32


@contextmanager
def served(folders: SharedFolders) -> Iterator[RawSftp]:
    """Serve folders on a socket beside the block; yield a client."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            SftpServer(folders, theirs).serve()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with ours:
        client = RawSftp(ours)
        yield client
        client._file.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def path_in(folder: Path, *parts: str | bytes) -> bytes:
    """Return the path of something in a folder, as bytes and as it stands."""
    tail = (part if isinstance(part, bytes) else part.encode() for part in parts)
    return b"/".join((bytes(folder), *tail))
