"""A folder that the server writes into: its files become jobs, each of them once.

Everything in such a folder is the server's doing: names, contents, links, and the
moment at which they change. So a file is first moved out, to where the server cannot
reach it, and only then looked at.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
import unicodedata
from pathlib import Path
from typing import Final

from x2go_session.errors import ServiceError

# NAME_MAX of Linux is 255 bytes; this leaves room for "(999)" and an extension.
NAME_LIMIT_BYTES: Final = 200
# Beside letters and digits: nothing that a shell, or a careless script, minds.
KEPT: Final = "-_.()+,=@"
FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_READ_ONLY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class SpoolError(ServiceError):
    """A file of a spool folder that cannot be taken: says which, and why."""


class SpoolMissing(SpoolError):
    """There is no such file, or not any more."""


class Spool:
    """A spool folder, and a private one beside it for what was taken from it.

    `folder` is what the server mounts; `taken` must be on the same file system and
    outside of it. Both are made if they are missing. Methods may be called from any
    thread.
    """

    def __init__(self, folder: Path, taken: Path) -> None:
        self.folder = folder
        self.taken = taken
        for made in (folder, taken):
            made.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # Protected by _lock.
        self._lock = threading.Lock()
        self._count = 0

    def names(self) -> list[str]:
        """Return the names in the folder, the oldest file first."""
        with os.scandir(self.folder) as entries:
            found = [(_changed(entry), entry.name) for entry in entries]
        return [name for _, name in sorted(found)]

    def take(self, name: str, new_name: str) -> Path:
        """Move a regular file into a private folder of its own; return where it is.

        Of several callers one gets it. Its mode becomes 0600. Raises `SpoolMissing` if
        it is not there any more, `SpoolError` if it is no regular file (then it is
        removed) or cannot be moved.
        """
        source = self.folder / plain_name(name)
        target = self._new_folder() / plain_name(new_name)
        try:
            os.rename(source, target)
            # Only here can nobody exchange it between the look and the use.
            file = os.open(target, _READ_ONLY)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise SpoolError(f"{name!r} is no regular file")
                os.fchmod(file, FILE_MODE)
            finally:
                os.close(file)
        except BaseException as error:
            remove_tree(target.parent)
            if isinstance(error, FileNotFoundError):
                raise SpoolMissing(f"there is no {name!r}") from error
            if isinstance(error, OSError):
                reason = error.strerror
                raise SpoolError(f"cannot take {name!r}: {reason}") from error
            raise
        return target

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Take a small file and return what is in it. Raises `SpoolError`."""
        path = self.take(name, "content")
        try:
            with path.open("rb") as file:
                content = file.read(limit_bytes + 1)
        finally:
            remove_tree(path.parent)
        if len(content) > limit_bytes:
            raise SpoolError(f"{name!r} is longer than {limit_bytes} bytes")
        return content

    def remove(self, name: str) -> None:
        """Remove whatever has this name in the folder; nothing there is fine."""
        path = self.folder / plain_name(name)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            remove_tree(path)

    def clean(self) -> None:
        """Remove both folders and all that is in them."""
        remove_tree(self.taken)
        remove_tree(self.folder)

    def _new_folder(self) -> Path:
        with self._lock:
            self._count += 1
            folder = self.taken / str(self._count)
        try:
            folder.mkdir(mode=FOLDER_MODE)
        except OSError as error:
            raise SpoolError(f"cannot make {folder}: {error.strerror}") from error
        return folder


def plain_name(name: str) -> str:
    """Return `name` if it names an entry of a folder. Raises `SpoolError` if not."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise SpoolError(f"{name!r} is no name of a file")
    return name


def file_name(text: str, fallback: str, blank: str = "_") -> str:
    """Return a name for a file that looks like `text` and is harmless.

    Letters and digits of every script stay; what separates folders, hides files,
    starts options, ends lines or turns text around does not.
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(char if char.isalnum() or char in KEPT else " " for char in text)
    name = blank.join(kept.split()).strip(". ").lstrip("-_. ")
    stem, dot, extension = name.rpartition(".")
    if not dot or len(extension) > 16:
        stem, dot, extension = name, "", ""
    room = NAME_LIMIT_BYTES - len((dot + extension).encode())
    # A character that was cut in the middle goes as a whole.
    stem = stem.encode()[:room].decode(errors="ignore").rstrip(".")
    return f"{stem}{dot}{extension}" if stem else fallback


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all that is in it, without following links."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _changed(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:
        return 0
