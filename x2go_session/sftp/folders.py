"""The folders that are shared, and how a path of the server's becomes a file of ours.

Theory of operation. What the server sends is a path; between looking at a path and
using it, the server (through another mount, say) may put a link where a folder was. So
no path is ever used twice, and none is given to the kernel as a whole: each share is
held by a descriptor of its folder, and a path is walked from there one component at a
time, by openat(2) with O_NOFOLLOW and O_DIRECTORY. A link is refused wherever it
stands in the way, and `..` is refused as text, so that no step leads up or out; and the
last component is only used relative to the descriptor that the walk ended with, again
without following. The check is the use.

Nothing is lost by not following links: the kernel on the server, not we, follows what
is in a mount. It asks for the target by READLINK and then for the path that results.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from x2go_session.sftp.watch import FolderWatch

# O_PATH: a folder may be walked through that may not be listed. Linux has it.
_WALK: Final = (
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)
_ROOT: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class Share:
    """One shared folder, held open: it stays the same folder if it is moved."""

    def __init__(
        self,
        folder: Path,
        served_as: bytes,
        read_only: bool,
        watch: FolderWatch | None,
    ) -> None:
        # Read-only after construction.
        self.folder = folder
        self.served_as = split(served_as)
        self.read_only = read_only
        self.watch = watch
        self.root_fd = -1
        self.root_fd = os.open(folder, _ROOT)
        # Set once, by `SharedFolders.remove`.
        self.withdrawn = False

    def __del__(self) -> None:
        # Not before: whoever walks from it just now holds the share.
        if self.root_fd >= 0:
            os.close(self.root_fd)

    def check_valid(self) -> None:
        """Raise OSError if the folder is not shared any more."""
        if self.withdrawn:
            raise OSError(errno.ENOENT, "the folder is not shared any more")

    def check_writable(self) -> None:
        """Raise OSError if the folder is not shared, or shared read-only."""
        self.check_valid()
        if self.read_only:
            raise OSError(errno.EROFS, "the folder is shared read-only")

    def local_path(self, parts: tuple[bytes, ...]) -> Path:
        """Return the path on this side, for those who watch."""
        return self.folder.joinpath(*(os.fsdecode(part) for part in parts))


class Place:
    """Where a path leads: a name in a folder that is held open; see `Share.place`."""

    __slots__ = ("folder_fd", "name", "parts", "share")

    def __init__(
        self, share: Share, parts: tuple[bytes, ...], folder_fd: int, name: bytes
    ) -> None:
        self.share = share
        self.parts = parts
        self.folder_fd = folder_fd
        self.name = name

    def open(self, flags: int, mode: int = 0o777) -> int:
        """Open it, not following a link; return a descriptor that the caller owns."""
        return os.open(
            self.name,
            flags | os.O_NOFOLLOW | os.O_CLOEXEC,
            mode,
            dir_fd=self.folder_fd,
        )

    def stat(self) -> os.stat_result:
        """Return what it is, a link being a link."""
        return os.stat(self.name, dir_fd=self.folder_fd, follow_symlinks=False)


class SharedFolders:
    """The shares of one session. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced as a whole, under _lock; read without.
        self._shares: tuple[Share, ...] = ()

    @property
    def shares(self) -> tuple[Share, ...]:
        """What is shared now."""
        return self._shares

    def add(
        self,
        folder: Path,
        *,
        served_as: bytes | None = None,
        read_only: bool = False,
        watch: FolderWatch | None = None,
    ) -> Share:
        """Share a folder; `served_as` is the path that the server knows it by.

        By default that is its own. Raises OSError if there is no such folder, or no
        right to it; ValueError if the server knows another share by that path.
        """
        real = folder.resolve(strict=True)
        path = os.fsencode(folder.absolute()) if served_as is None else served_as
        share = Share(real, path, read_only, watch)
        with self._lock:
            if any(other.served_as == share.served_as for other in self._shares):
                raise ValueError(f"a folder is already shared as {path!r}")
            self._shares = (*self._shares, share)
        return share

    def remove(self, share: Share) -> None:
        """Share it no more: files of it that are open cannot be used from now on."""
        with self._lock:
            share.withdrawn = True
            self._shares = tuple(kept for kept in self._shares if kept is not share)

    def clear(self) -> None:
        """Share nothing any more."""
        for share in self._shares:
            self.remove(share)

    def find(self, path: bytes) -> tuple[Share, tuple[bytes, ...]]:
        """Return the share that a path lies in, and the rest of the path.

        Raises OSError for a path that is in no share, and for any with `..` in it.
        """
        parts = split(path)
        best: Share | None = None
        for share in self._shares:
            depth = len(share.served_as)
            if parts[:depth] == share.served_as and (
                best is None or depth > len(best.served_as)
            ):
                best = share
        if best is None:
            raise OSError(errno.ENOENT, "no shared folder has this path")
        return best, parts[len(best.served_as) :]

    @contextmanager
    def place(self, path: bytes, *, writing: bool = False) -> Iterator[Place]:
        """Walk to where a path leads, and hold that while the block runs.

        Raises OSError if it leads nowhere, or out; with `writing`, also if the share
        is read-only.
        """
        share, parts = self.find(path)
        if writing:
            share.check_writable()
        held = -1
        try:
            folder_fd = share.root_fd
            for part in parts[:-1]:
                folder_fd = os.open(part, _WALK, dir_fd=folder_fd)
                if held >= 0:
                    os.close(held)
                held = folder_fd
            yield Place(share, parts, folder_fd, parts[-1] if parts else b".")
        finally:
            if held >= 0:
                os.close(held)


def split(path: bytes) -> tuple[bytes, ...]:
    """Return the components of a path from the root. Raises OSError for `..`."""
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise OSError(errno.EACCES, "a path may not lead up")
    return parts
