"""Moving one file over SFTP, with many large requests under way.

Theory of operation (draft-ietf-secsh-filexfer-02: version 3, which all servers speak):

A request is answered by its number, in any order. So a transfer sends requests without
waiting, up to MOST_REQUESTS, and then one for each answer, which hides the round trip.
paramiko does that too, 32 KiB at a time, and copies each block several times on its way
through messages and prefetch buffers. Here a block is as large as the server takes, and
goes between the socket and the file with one copy at most.

Two traps. A read may bring less than was asked for: what is missing is asked for again.
And replies for others come in between (a file that is being prefetched on the same
client; a callback that asks for something): each goes to whom its number belongs,
whoever reads it. paramiko keeps the table of them, and a transfer is an entry in it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import paramiko
from paramiko.message import Message

from rtunnel.ssh import seams

Progress = Callable[[int, int], object]

CMD_READ: Final = 5
CMD_WRITE: Final = 6
CMD_STATUS: Final = 101
CMD_DATA: Final = 103
STATUS_EOF: Final = 1

# Requests under way: what OpenSSH's sftp has (-R).
MOST_REQUESTS: Final = 64
# A reply that is no data: a status, attributes, names. paramiko has the same limit.
MOST_REPLY_BYTES: Final = (1 << 24) - 1

LENGTH = struct.Struct(">I")
REPLY = struct.Struct(">IBI")  # length, type, number of the request


class Transfer(ABC):
    """Requests of one file that are under way. For one thread at a time."""

    def __init__(self, client: paramiko.SFTPClient, file: paramiko.SFTPFile) -> None:
        handle: Any = file.handle  # bytes, whatever the stubs say
        self._client: Any = client
        self._sock: Any = client.sock
        self._handle = struct.pack(f">I{len(handle)}s", len(handle), handle)
        # Number of a request -> (offset, bytes).
        self._under_way: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever reads an answer that is still to come drops it.
        for number in self._under_way:
            seams.forget_sftp_request(self._client, number)
        self._under_way.clear()

    def _send(self, kind: int, offset: int, count: int, data: bytes = b"") -> None:
        number = seams.next_sftp_request(self._client, self)
        self._under_way[number] = (offset, count)
        rest = self._handle + struct.pack(">QI", offset, count)
        length = REPLY.size - LENGTH.size + len(rest) + len(data)
        header = REPLY.pack(length, kind, number) + rest
        with self._whole():
            sent = self._sock.sendmsg([header, data])
            if sent < len(header):
                self._sock.sendall(header[sent:])
                sent = len(header)
            if sent < len(header) + len(data):
                self._sock.sendall(memoryview(data)[sent - len(header) :])

    def _take_reply(self) -> None:
        """Read one reply, and give it to whom it belongs."""
        length, kind, number = REPLY.unpack(self._read(REPLY.size))
        left = length - (REPLY.size - LENGTH.size)
        if not 0 <= left <= MOST_REPLY_BYTES:
            raise self._broken(f"a reply of {length} bytes")
        if number not in self._under_way:
            seams.dispatch_sftp_reply(self._client, kind, number, self._read(left))
        elif kind != CMD_DATA:
            self._async_response(kind, Message(self._read(left)), number)
        else:
            if left < LENGTH.size:
                raise self._broken("data without a length")
            (count,) = LENGTH.unpack(self._read(LENGTH.size))
            if count != left - LENGTH.size:
                raise self._broken("data of two lengths")
            self._take_data(number, count, lambda: self._read(count))

    def _async_response(self, kind: int, message: Message, number: int) -> None:
        """Take a reply: paramiko's name, for when somebody else has read it."""
        if number not in self._under_way:
            return
        if kind == CMD_DATA:
            data = message.get_binary()
            self._take_data(number, len(data), lambda: data)
        elif kind == CMD_STATUS:
            self._take_status(self._finished(number)[0], message)
        else:
            raise self._broken(f"a reply of type {kind}")

    def _take_data(self, number: int, count: int, data: Callable[[], bytes]) -> None:
        offset, asked = self._finished(number)
        if not 0 < count <= asked:
            raise self._broken(f"{count} bytes where {asked} were asked for")
        self._take_block(offset, asked, data())

    def _finished(self, number: int) -> tuple[int, int]:
        seams.forget_sftp_request(self._client, number)
        return self._under_way.pop(number)

    def _read(self, count: int) -> bytes:
        with self._whole():
            data: bytes = self._sock.recv(count, socket.MSG_WAITALL)
            while len(data) < count:  # a socket with a time limit does not wait for all
                more = self._sock.recv(count - len(data), socket.MSG_WAITALL)
                if not more:
                    raise ConnectionResetError
                data += more
        return data

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """End the session if the block does not: half a message has no second half."""
        try:
            yield
        except BaseException as error:
            self._client.close()
            if isinstance(error, ConnectionError):
                raise paramiko.SSHException("Server connection dropped") from error
            raise

    def _broken(self, what: str) -> paramiko.SFTPError:
        self._client.close()
        return paramiko.SFTPError(f"the SFTP server sent {what}")

    @abstractmethod
    def _take_block(self, offset: int, asked: int, data: bytes) -> None:
        """Take data that came for `asked` bytes at `offset`."""

    @abstractmethod
    def _take_status(self, offset: int, message: Message) -> None:
        """Take the answer to a request at `offset` that brought no data."""


class Download(Transfer):
    """Reads a file from its start to its end, and writes it in order."""

    def __init__(
        self,
        client: paramiko.SFTPClient,
        file: paramiko.SFTPFile,
        block_bytes: int,
        most: int,
    ) -> None:
        super().__init__(client, file)
        self._block_bytes = block_bytes
        self._most = most
        # What came before what is in front of it.
        self._early: dict[int, bytes] = {}
        self._end: int | None = None

    def run(
        self, write: Callable[[bytes], object], size: int, progress: Progress | None
    ) -> int:
        """Write all of a file that was `size` bytes long; return how many there were.

        It may have grown or shrunk since, or never had a size, as those in /proc.
        Waits. Raises OSError with what the server says, and what `write` and `progress`
        raise.
        """
        done = asked = 0
        while self._end is None or done < self._end:
            while (
                asked < size
                and self._end is None
                and len(self._under_way) + len(self._early) < self._most
            ):
                count = min(self._block_bytes, size - asked)
                self._send(CMD_READ, asked, count)
                asked += count
            if done in self._early:
                block = self._early.pop(done)
                write(block)
                done += len(block)
                if progress is not None:
                    progress(done, size)
            else:
                if not self._under_way:  # all that it had is here: is there more?
                    self._send(CMD_READ, done, self._block_bytes)
                self._take_reply()
        return done

    def _take_block(self, offset: int, asked: int, data: bytes) -> None:
        self._early[offset] = data
        if len(data) < asked:
            self._send(CMD_READ, offset + len(data), asked - len(data))

    def _take_status(self, offset: int, message: Message) -> None:
        try:
            seams.check_sftp_status(self._client, message)
        except EOFError:
            self._end = offset if self._end is None else min(self._end, offset)


class Upload(Transfer):
    """Writes a file from its start to its end."""

    def run(
        self,
        read: Callable[[int], bytes | str],
        block_bytes: int,
        size: int,
        progress: Progress | None,
    ) -> int:
        """Write all that `read` gives; return how many bytes there were.

        Waits until the server has answered for all of them. Raises OSError with what it
        says, and what `read` and `progress` raise.
        """
        done = 0
        while data := read(block_bytes):
            if isinstance(data, str):
                data = data.encode()
            while len(self._under_way) >= MOST_REQUESTS:
                self._take_reply()
            self._send(CMD_WRITE, done, len(data), data)
            done += len(data)
            if progress is not None:
                progress(done, size)
        while self._under_way:
            self._take_reply()
        return done

    def _take_block(self, offset: int, asked: int, data: bytes) -> None:
        raise self._broken("data for a write")

    def _take_status(self, offset: int, message: Message) -> None:
        seams.check_sftp_status(self._client, message)
