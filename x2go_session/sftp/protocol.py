"""SFTP version 3 on the wire: numbers, attributes, and checked reading.

The protocol is draft-ietf-secsh-filexfer-02, with the extensions that OpenSSH has in
its PROTOCOL file. Paths are bytes: their encoding is the business of the two ends.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

VERSION: Final = 3
# As OpenSSH's sftp-server, which sshfs and sftp have always met: packets of 256 KiB at
# most, less their headers for data.
MAX_PACKET_BYTES: Final = 256 * 1024
MAX_DATA_BYTES: Final = MAX_PACKET_BYTES - 1024
# Of a path; Linux takes no longer ones (PATH_MAX).
MAX_PATH_BYTES: Final = 4096
# Sizes and offsets have 64 bits in the protocol, and a sign in system calls.
OFFSET_MAX: Final = 2**63 - 1


class Request(IntEnum):
    """What a client asks for."""

    INIT = 1
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    EXTENDED = 200


class Reply(IntEnum):
    """What it gets."""

    VERSION = 2
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """How a request went."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    OP_UNSUPPORTED = 8


class OpenFlag(IntFlag):
    """How a file is opened."""

    READ = 1
    WRITE = 2
    APPEND = 4
    CREAT = 8
    TRUNC = 16
    EXCL = 32


class AttributeFlag(IntFlag):
    """Which attributes follow."""

    SIZE = 1
    UIDGID = 2
    PERMISSIONS = 4
    ACMODTIME = 8
    EXTENDED = 0x80000000


# The error of a system call, as sftp-server tells it; whatever is not here is FAILURE.
STATUS_OF_ERRNO: Final = {
    errno.ENOENT: Status.NO_SUCH_FILE,
    errno.ENOTDIR: Status.NO_SUCH_FILE,
    errno.EBADF: Status.NO_SUCH_FILE,
    errno.ELOOP: Status.NO_SUCH_FILE,
    errno.EPERM: Status.PERMISSION_DENIED,
    errno.EACCES: Status.PERMISSION_DENIED,
    errno.EROFS: Status.PERMISSION_DENIED,
    errno.ENAMETOOLONG: Status.BAD_MESSAGE,
    errno.EINVAL: Status.BAD_MESSAGE,
    errno.ENOSYS: Status.OP_UNSUPPORTED,
    errno.EOPNOTSUPP: Status.OP_UNSUPPORTED,
}

_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_ATTRIBUTES: Final = struct.Struct(">IQIIIII")
_STATVFS: Final = struct.Struct(">11Q")
_ALL_ATTRIBUTES: Final = (
    AttributeFlag.SIZE
    | AttributeFlag.UIDGID
    | AttributeFlag.PERMISSIONS
    | AttributeFlag.ACMODTIME
)
_TIME_MAX: Final = 2**32 - 1


class BadMessage(Exception):
    """The client sent what the protocol does not have."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a client wants set; None for what it does not name."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    times_s: tuple[int, int] | None = None


class Fields:
    """Reads the fields of one request. Each method raises `BadMessage` past its end."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: memoryview, start: int, end: int) -> None:
        self._data = data
        self._at = start
        self._end = end

    def _take(self, count: int) -> int:
        at = self._at
        if count > self._end - at:
            raise BadMessage("a request ends too early")
        self._at = at + count
        return at

    def u32(self) -> int:
        """Read a uint32."""
        value: int = _U32.unpack_from(self._data, self._take(4))[0]
        return value

    def u64(self) -> int:
        """Read a uint64."""
        value: int = _U64.unpack_from(self._data, self._take(8))[0]
        return value

    def view(self) -> memoryview:
        """Read a string without copying it: valid until the next packets are read."""
        count = self.u32()
        at = self._take(count)
        return self._data[at : at + count]

    def string(self) -> bytes:
        """Read a string."""
        return bytes(self.view())

    def path(self) -> bytes:
        """Read a path. Raises OSError for one that no system call would take."""
        value = self.string()
        if len(value) > MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the path is too long")
        if b"\0" in value:
            raise OSError(errno.EINVAL, "the path has a zero byte")
        return value

    def attributes(self) -> Attributes:
        """Read a set of attributes. Raises OSError for a size that no file can have."""
        flags = self.u32()
        size = self.u64() if flags & AttributeFlag.SIZE else None
        owner = (self.u32(), self.u32()) if flags & AttributeFlag.UIDGID else None
        mode = self.u32() if flags & AttributeFlag.PERMISSIONS else None
        times = (self.u32(), self.u32()) if flags & AttributeFlag.ACMODTIME else None
        if flags & AttributeFlag.EXTENDED:
            for _ in range(self.u32()):
                self.view()
                self.view()
        if size is not None and size > OFFSET_MAX:
            raise OSError(errno.EINVAL, "the size is too large")
        return Attributes(size, owner, mode, times)


def string(value: bytes) -> bytes:
    """Encode a string."""
    return _U32.pack(len(value)) + value


def attributes(found: os.stat_result) -> bytes:
    """Encode what stat(2) says of a file."""
    return _ATTRIBUTES.pack(
        _ALL_ATTRIBUTES,
        found.st_size,
        found.st_uid,
        found.st_gid,
        found.st_mode,
        _time(found.st_atime),
        _time(found.st_mtime),
    )


def _time(seconds: float) -> int:
    # The protocol has 32 bits without a sign.
    return min(max(int(seconds), 0), _TIME_MAX)


def statvfs_reply(found: os.statvfs_result, read_only: bool) -> bytes:
    """Encode what statvfs(3) says, as the extension of OpenSSH has it."""
    flags = found.f_flag & (os.ST_RDONLY | os.ST_NOSUID)
    if read_only:
        flags |= os.ST_RDONLY
    return _STATVFS.pack(
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid & (2**64 - 1),
        flags,
        found.f_namemax,
    )


def long_name(name: bytes, found: os.stat_result) -> bytes:
    """Return a line as of `ls -ln`, for clients that show it."""
    when = time.strftime("%b %d %H:%M %Y", time.gmtime(_time(found.st_mtime)))
    line = (
        f"{stat.filemode(found.st_mode)} {found.st_nlink:3d} {found.st_uid:<8d} "
        f"{found.st_gid:<8d} {found.st_size:8d} {when} "
    )
    return line.encode() + name
