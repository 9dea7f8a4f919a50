"""What a client has open: files and folders, by the handles it got for them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from x2go_session.sftp.folders import Share
from x2go_session.sftp.protocol import OpenFlag

# Of one connection. sshfs holds one for each file that is open on the mount; the usual
# limit of a process is 1024 descriptors (RLIMIT_NOFILE).
MOST_HANDLES: Final = 512


class OpenFile:
    """A regular file that a client has open. Owns `fd`."""

    __slots__ = ("fd", "parts", "share", "writable", "written")

    def __init__(
        self,
        share: Share,
        parts: tuple[bytes, ...],
        fd: int,
        writable: bool,
        written: bool,
    ) -> None:
        self.share = share
        self.parts = parts
        self.fd = fd
        self.writable = writable
        # Whether there is anything to tell of at its end: created, or changed.
        self.written = written

    def close(self) -> None:
        """Give the descriptor back. Raises OSError where data could not be stored."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class OpenFolder:
    """A folder that a client lists, entry by entry."""

    __slots__ = ("_entries", "_fd", "share")

    def __init__(self, share: Share, fd: int) -> None:
        self.share = share
        self._fd = fd
        self._entries = self._read()

    def _read(self) -> Iterator[tuple[bytes, os.stat_result]]:
        own = os.fstat(self._fd)
        yield b".", own
        # What is above a shared folder is nobody's business.
        yield b"..", own
        with os.scandir(self._fd) as entries:
            for entry in entries:
                # One that was removed meanwhile is not there any more.
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    yield os.fsencode(entry.name), found

    def next(self) -> tuple[bytes, os.stat_result] | None:
        """Return the next entry; None at the end."""
        return next(self._entries, None)

    def close(self) -> None:
        """Give the descriptor back."""
        self._entries.close()  # type: ignore[attr-defined]
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Handles:
    """The handles of one connection. Only for the thread that serves it."""

    def __init__(self) -> None:
        self._open: dict[bytes, OpenFile | OpenFolder] = {}
        self._count = 0

    def add(self, opened: OpenFile | OpenFolder) -> bytes:
        """Take something into account; return its handle, which was never used."""
        self._count += 1
        handle = self._count.to_bytes(8, "big")
        self._open[handle] = opened
        return handle

    def check_room(self) -> None:
        """Raise OSError if the client has too much open."""
        if len(self._open) >= MOST_HANDLES:
            raise OSError(errno.EMFILE, "too many open files")

    def file(self, handle: bytes) -> OpenFile:
        """Return an open file of a folder that is still shared. Raises OSError."""
        opened = self._open.get(handle)
        if not isinstance(opened, OpenFile):
            raise OSError(errno.EBADF, "there is no such open file")
        if opened.share.withdrawn:
            opened.share.check_valid()
        return opened

    def folder(self, handle: bytes) -> OpenFolder:
        """Return an open folder that is still shared. Raises OSError."""
        opened = self._open.get(handle)
        if not isinstance(opened, OpenFolder):
            raise OSError(errno.EBADF, "there is no such open folder")
        opened.share.check_valid()
        return opened

    def remove(self, handle: bytes) -> OpenFile | OpenFolder:
        """Forget a handle; return what it was, for `close`. Raises OSError."""
        opened = self._open.pop(handle, None)
        if opened is None:
            raise OSError(errno.EBADF, "there is no such handle")
        return opened

    def files(self) -> list[OpenFile]:
        """Return the files that are open."""
        return [
            opened for opened in self._open.values() if isinstance(opened, OpenFile)
        ]

    def close_all(self) -> None:
        """The client is gone: close everything, and tell nobody."""
        for opened in self._open.values():
            with contextlib.suppress(OSError):
                opened.close()
        self._open.clear()


def system_flags(flags: int) -> int:
    """Return the flags of open(2) for those of SFTP. Raises OSError for none."""
    wanted = flags & (OpenFlag.READ | OpenFlag.WRITE)
    if not wanted:
        raise OSError(errno.EINVAL, "a file is opened for reading, writing or both")
    # O_NONBLOCK: a pipe without another end would keep us. No effect on files.
    system = os.O_NONBLOCK | os.O_NOCTTY
    system |= {1: os.O_RDONLY, 2: os.O_WRONLY, 3: os.O_RDWR}[wanted]
    for flag, name in (
        (OpenFlag.APPEND, os.O_APPEND),
        (OpenFlag.CREAT, os.O_CREAT),
        (OpenFlag.TRUNC, os.O_TRUNC),
        (OpenFlag.EXCL, os.O_EXCL),
    ):
        if flags & flag:
            system |= name
    return system


def check_regular(fd: int) -> None:
    """Raise OSError for a descriptor of a pipe, device or anything but a file."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EPERM, "it is no regular file")
