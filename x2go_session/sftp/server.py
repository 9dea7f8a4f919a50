"""The SFTP server of one connection: packets in, packets out.

Theory of operation. What costs is not the requests, but waking up for each of them.
So as much is read at once as the socket has; all requests in that are answered into
one buffer, and that leaves with one call. The bytes of files are not copied in Python:
WRITE stores them from where they were received, READ puts them where they are sent
from. One thread serves a connection: requests are done in the order in which they
come, and a client that does not read its replies gets no further ones.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from typing import Final

from x2go_session.sftp.folders import SharedFolders
from x2go_session.sftp.handles import OpenFile
from x2go_session.sftp.operations import Operations, failure, status, version
from x2go_session.sftp.protocol import (
    MAX_DATA_BYTES,
    MAX_PACKET_BYTES,
    OFFSET_MAX,
    BadMessage,
    Fields,
    Reply,
    Request,
    Status,
)

log = logging.getLogger("x2go_session.sftp")

# Room for several of the largest packets, and for many of sshfs's, of up to 64 KiB.
BUFFER_BYTES: Final = 1024 * 1024
# Replies leave when so much is there: what takes them can start while we go on.
FLUSH_BYTES: Final = 128 * 1024
# Of the local socket, so that a window's worth passes without waking anybody.
SOCKET_BUFFER_BYTES: Final = 1024 * 1024

_U32: Final = struct.Struct(">I")
# Packet length, type, request number.
_FIRST_BYTES: Final = 9
# What READ and WRITE begin with: length of the handle, handle, offset, length.
_RANGE: Final = struct.Struct(">I8sQI")
# Length of the packet, type, request number, length of the data.
_DATA: Final = struct.Struct(">IB4sI")


class SftpServer:
    """Serves the shared folders on one socket, until the client closes it."""

    def __init__(self, folders: SharedFolders, conn: socket.socket) -> None:
        self._conn = conn
        self._operations = Operations(folders)
        self._incoming = bytearray(BUFFER_BYTES)
        self._in_view = memoryview(self._incoming)
        self._start = 0
        self._end = 0
        self._outgoing = bytearray(FLUSH_BYTES + MAX_PACKET_BYTES)
        self._out_view = memoryview(self._outgoing)
        self._out_end = 0

    def serve(self) -> None:
        """Answer requests until the end of the stream. Blocks; any thread, once.

        A client that breaks the protocol is logged, and its stream ends.
        """
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._conn.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        try:
            if self._greet():
                while self._receive():
                    self._answer_all()
        except BadMessage as error:
            log.warning("the client of a shared folder is cut off: %s", error)
        except (ConnectionError, TimeoutError) as error:
            log.debug("a shared folder's connection broke: %s", error)
        finally:
            self._operations.handles.close_all()

    def _greet(self) -> bool:
        """Take INIT (uint32 version) and answer it; False if nobody is there."""
        while (length := self._packet_bytes()) is None:
            if not self._receive():
                return False
        kind = self._incoming[self._start + 4]
        if kind != Request.INIT or length < 5:
            raise BadMessage("the first packet is not INIT")
        self._start += 4 + length
        self._put(version())
        self._answer_all()
        return True

    def _receive(self) -> bool:
        """Read what there is, some bytes at least; False at the end of the stream."""
        if self._start == self._end:
            self._start = self._end = 0
        elif BUFFER_BYTES - self._start < MAX_PACKET_BYTES + 4:
            rest = self._end - self._start
            self._in_view[:rest] = self._in_view[self._start : self._end]
            self._start, self._end = 0, rest
        count = self._conn.recv_into(self._in_view[self._end :])
        self._end += count
        return count > 0

    def _packet_bytes(self) -> int | None:
        """Return the length of the next packet, if all of it is there."""
        have = self._end - self._start
        if have < 4:
            return None
        length: int = _U32.unpack_from(self._incoming, self._start)[0]
        if not 5 <= length <= MAX_PACKET_BYTES:
            raise BadMessage(f"a packet of {length} bytes")
        return length if have >= 4 + length else None

    def _answer_all(self) -> None:
        """Answer the requests that are there as a whole."""
        while (length := self._packet_bytes()) is not None:
            start = self._start
            self._start = end = start + 4 + length
            kind = self._incoming[start + 4]
            number = bytes(self._in_view[start + 5 : start + _FIRST_BYTES])
            try:
                if kind == Request.READ:
                    self._read(number, start + _FIRST_BYTES, end)
                elif kind == Request.WRITE:
                    self._write(number, start + _FIRST_BYTES, end)
                else:
                    fields = Fields(self._in_view, start + _FIRST_BYTES, end)
                    self._put(self._operations.answer(kind, number, fields))
            except OSError as error:
                self._put(failure(number, error))
            if self._out_end >= FLUSH_BYTES:
                self._flush()
        self._flush()

    def _range(self, at: int, end: int) -> tuple[OpenFile, int, int]:
        """Read handle, offset and length: of what is read, or of the data behind."""
        if end - at < _RANGE.size:
            raise BadMessage("a request ends too early")
        handle_bytes, handle, offset, count = _RANGE.unpack_from(self._incoming, at)
        if handle_bytes != len(handle):
            raise OSError(errno.EBADF, "there is no such handle")
        if offset > OFFSET_MAX - count:
            raise OSError(errno.EINVAL, "there is no such place in a file")
        return self._operations.handles.file(handle), offset, count

    def _read(self, number: bytes, at: int, end: int) -> None:
        """Payload: string handle, uint64 offset, uint32 length."""
        file, offset, count = self._range(at, end)
        data = self._out_end + _DATA.size
        room = self._out_view[data : data + min(count, MAX_DATA_BYTES)]
        count = os.preadv(file.fd, (room,), offset)
        if count == 0:
            self._put(status(number, Status.EOF, "the end"))
            return
        _DATA.pack_into(
            self._outgoing, self._out_end, count + 9, Reply.DATA, number, count
        )
        self._out_end = data + count

    def _write(self, number: bytes, at: int, end: int) -> None:
        """Payload: string handle, uint64 offset, string data."""
        file, offset, count = self._range(at, end)
        at += _RANGE.size
        if count != end - at:
            raise BadMessage("a request has another length than it says")
        if not file.writable:
            raise OSError(errno.EACCES, "the file is open for reading only")
        file.written = True
        while at < end:
            stored = os.pwrite(file.fd, self._in_view[at:end], offset)
            at += stored
            offset += stored
        self._put(status(number, Status.OK))

    def _put(self, reply: bytes) -> None:
        end = self._out_end + 4 + len(reply)
        _U32.pack_into(self._outgoing, self._out_end, len(reply))
        self._outgoing[self._out_end + 4 : end] = reply
        self._out_end = end

    def _flush(self) -> None:
        count, self._out_end = self._out_end, 0
        if count:
            self._conn.sendall(self._out_view[:count])
