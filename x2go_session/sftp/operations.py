"""What the requests of a client do to the shared folders, but for reading and writing.

Each function returns the whole reply, but for its length, or raises OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from typing import Final

from x2go_session.sftp import protocol
from x2go_session.sftp.folders import Place, SharedFolders, split
from x2go_session.sftp.handles import (
    MOST_HANDLES,
    Handles,
    OpenFile,
    OpenFolder,
    check_regular,
    system_flags,
)
from x2go_session.sftp.protocol import (
    MAX_DATA_BYTES,
    MAX_PACKET_BYTES,
    Attributes,
    Fields,
    OpenFlag,
    Reply,
    Request,
    Status,
)

log = logging.getLogger("x2go_session.sftp")

# A reply with names is filled up to here; sshfs takes no packets over 128 KiB.
NAMES_BYTES: Final = 32 * 1024
# Nobody who writes through a mount makes programs that run as somebody else.
MODE_MASK: Final = 0o1777
_OPEN_NO_FOLLOW: Final = getattr(os, "O_PATH", os.O_RDONLY)
RENAME_NOREPLACE: Final = 1

EXTENSIONS: Final = (
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"fstatvfs@openssh.com", b"2"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
    (b"lsetstat@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
)

_libc: Final = ctypes.CDLL(None, use_errno=True)


def version() -> bytes:
    """Return the answer to INIT."""
    packet = bytes([Reply.VERSION]) + protocol.VERSION.to_bytes(4, "big")
    return packet + b"".join(
        protocol.string(name) + protocol.string(value) for name, value in EXTENSIONS
    )


def status(number: bytes, code: Status, text: str = "") -> bytes:
    """Return a STATUS reply; `number` is that of the request, as it came."""
    return (
        bytes([Reply.STATUS])
        + number
        + int(code).to_bytes(4, "big")
        + protocol.string(text.encode(errors="surrogateescape"))
        + protocol.string(b"en")
    )


class Operations:
    """The requests of one connection. Only for the thread that serves it."""

    def __init__(self, folders: SharedFolders) -> None:
        self._folders = folders
        self.handles = Handles()
        table: dict[Request, Callable[[bytes, Fields], bytes]] = {
            Request.OPEN: self._open,
            Request.CLOSE: self._close,
            Request.LSTAT: self._stat,
            Request.STAT: self._stat,
            Request.FSTAT: self._fstat,
            Request.SETSTAT: self._setstat,
            Request.FSETSTAT: self._fsetstat,
            Request.OPENDIR: self._opendir,
            Request.READDIR: self._readdir,
            Request.REMOVE: self._remove,
            Request.MKDIR: self._mkdir,
            Request.RMDIR: self._rmdir,
            Request.REALPATH: self._realpath,
            Request.RENAME: self._rename,
            Request.READLINK: self._readlink,
            Request.SYMLINK: self._symlink,
            Request.EXTENDED: self._extended,
        }
        self._table: dict[int, Callable[[bytes, Fields], bytes]] = {
            int(kind): function for kind, function in table.items()
        }
        self._extensions: dict[bytes, Callable[[bytes, Fields], bytes]] = {
            b"posix-rename@openssh.com": self._posix_rename,
            b"statvfs@openssh.com": self._statvfs,
            b"fstatvfs@openssh.com": self._fstatvfs,
            b"hardlink@openssh.com": self._hardlink,
            b"fsync@openssh.com": self._fsync,
            b"lsetstat@openssh.com": self._setstat,
            b"limits@openssh.com": self._limits,
        }

    def answer(self, kind: int, number: bytes, fields: Fields) -> bytes:
        """Do what a request asks for; return the reply, whatever happens.

        Raises `BadMessage` for one that is malformed: that ends the connection.
        """
        function = self._table.get(kind)
        if function is None:
            return status(number, Status.OP_UNSUPPORTED, "not supported")
        try:
            return function(number, fields)
        except OSError as error:
            return failure(number, error)

    # Files.

    def _open(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path, uint32 flags, attributes (only the mode counts)."""
        path, flags, wanted = fields.path(), fields.u32(), fields.attributes()
        system = system_flags(flags)
        writable = bool(flags & OpenFlag.WRITE)
        changing = writable or bool(flags & (OpenFlag.CREAT | OpenFlag.TRUNC))
        mode = 0o666 if wanted.mode is None else wanted.mode & 0o777
        self.handles.check_room()
        with self._folders.place(path, writing=changing) as place:
            created = bool(flags & OpenFlag.CREAT) and not _exists(place)
            fd = place.open(system, mode)
            try:
                check_regular(fd)
            except OSError:
                os.close(fd)
                raise
            written = created or bool(flags & OpenFlag.TRUNC)
            opened = OpenFile(place.share, place.parts, fd, writable, written)
        return _handle(number, self.handles.add(opened))

    def _close(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string handle."""
        opened = self.handles.remove(fields.string())
        opened.close()
        share = opened.share
        if isinstance(opened, OpenFile) and share.watch and not share.withdrawn:
            with _logged():
                share.watch.on_close(share.local_path(opened.parts), opened.written)
        return _ok(number)

    def _fsync(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string handle."""
        os.fsync(self.handles.file(fields.string()).fd)
        return _ok(number)

    # Attributes.

    def _stat(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path. STAT and LSTAT are the same: nothing is followed."""
        path = fields.path()
        if not split(path):
            # Where a client starts, and learns who we are: sshfs does so by STAT ".".
            return _attributes(number, _of_the_top())
        with self._folders.place(path) as place:
            return _attributes(number, place.stat())

    def _fstat(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string handle."""
        opened = self.handles.file(fields.string())
        return _attributes(number, os.fstat(opened.fd))

    def _setstat(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path, attributes."""
        path, wanted = fields.path(), fields.attributes()
        with self._folders.place(path, writing=True) as place:
            if wanted.size is not None:
                with _opened(place, os.O_WRONLY | os.O_NONBLOCK) as fd:
                    check_regular(fd)
                    os.ftruncate(fd, wanted.size)
            if wanted.mode is not None:
                # chmod(2) has no way not to follow a link, but takes a descriptor
                # that is one; the kernel refuses to change the mode of a link.
                with _opened(place, _OPEN_NO_FOLLOW) as fd:
                    os.chmod(f"/proc/self/fd/{fd}", wanted.mode & MODE_MASK)
            if wanted.times_s is not None:
                os.utime(
                    place.name,
                    wanted.times_s,
                    dir_fd=place.folder_fd,
                    follow_symlinks=False,
                )
            if wanted.owner is not None:
                os.chown(
                    place.name,
                    *wanted.owner,
                    dir_fd=place.folder_fd,
                    follow_symlinks=False,
                )
        return _ok(number)

    def _fsetstat(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string handle, attributes."""
        opened, wanted = self.handles.file(fields.string()), fields.attributes()
        opened.share.check_writable()
        _change(opened, wanted)
        return _ok(number)

    def _statvfs(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path."""
        with (
            self._folders.place(fields.path()) as place,
            _opened(place, _OPEN_NO_FOLLOW) as fd,
        ):
            return _statvfs(number, os.fstatvfs(fd), place.share.read_only)

    def _fstatvfs(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string handle."""
        opened = self.handles.file(fields.string())
        return _statvfs(number, os.fstatvfs(opened.fd), opened.share.read_only)

    # Folders.

    def _opendir(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path."""
        path = fields.path()
        self.handles.check_room()
        with self._folders.place(path) as place:
            fd = place.open(os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
            return _handle(number, self.handles.add(OpenFolder(place.share, fd)))

    def _readdir(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string handle."""
        folder = self.handles.folder(fields.string())
        entries = bytearray()
        count = 0
        while len(entries) < NAMES_BYTES:
            entry = folder.next()
            if entry is None:
                break
            name, found = entry
            entries += protocol.string(name)
            entries += protocol.string(protocol.long_name(name, found))
            entries += protocol.attributes(found)
            count += 1
        if not count:
            return status(number, Status.EOF, "the end")
        return bytes([Reply.NAME]) + number + count.to_bytes(4, "big") + entries

    def _mkdir(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path, attributes (only the mode counts)."""
        path, wanted = fields.path(), fields.attributes()
        mode = 0o777 if wanted.mode is None else wanted.mode & MODE_MASK
        with self._folders.place(path, writing=True) as place:
            os.mkdir(place.name, mode, dir_fd=place.folder_fd)
        return _ok(number)

    def _rmdir(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path."""
        with self._folders.place(fields.path(), writing=True) as place:
            os.rmdir(place.name, dir_fd=place.folder_fd)
            _tell_removed(place)
        return _ok(number)

    def _remove(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path."""
        with self._folders.place(fields.path(), writing=True) as place:
            os.unlink(place.name, dir_fd=place.folder_fd)
            _tell_removed(place)
        return _ok(number)

    def _realpath(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path. Plain arithmetic: says nothing of what there is."""
        path = fields.path()
        whole = posixpath.normpath(b"/" + path.lstrip(b"/"))
        return _name(number, whole)

    # Names.

    def _rename(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string old path, string new path, which may not exist."""
        return self._move(number, fields, replacing=False)

    def _posix_rename(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string old path, string new path."""
        return self._move(number, fields, replacing=True)

    def _move(self, number: bytes, fields: Fields, *, replacing: bool) -> bytes:
        with self._two_places(fields) as (old, new):
            if replacing:
                os.rename(
                    old.name, new.name,
                    src_dir_fd=old.folder_fd, dst_dir_fd=new.folder_fd,
                )  # fmt: skip
            else:
                _rename_noreplace(old, new)
            depth = len(old.parts)
            for file in self.handles.files():
                if file.share is old.share and file.parts[:depth] == old.parts:
                    file.parts = new.parts + file.parts[depth:]
            share = old.share
            if share.watch is not None:
                with _logged():
                    share.watch.on_rename(
                        share.local_path(old.parts), share.local_path(new.parts)
                    )
        return _ok(number)

    def _hardlink(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string existing path, string new path."""
        with self._two_places(fields) as (old, new):
            if stat.S_ISLNK(old.stat().st_mode):
                raise OSError(errno.EPERM, "a link is not linked again")
            os.link(
                old.name, new.name,
                src_dir_fd=old.folder_fd, dst_dir_fd=new.folder_fd,
                follow_symlinks=False,
            )  # fmt: skip
        return _ok(number)

    @contextlib.contextmanager
    def _two_places(self, fields: Fields) -> Iterator[tuple[Place, Place]]:
        old_path, new_path = fields.path(), fields.path()
        with (
            self._folders.place(old_path, writing=True) as old,
            self._folders.place(new_path, writing=True) as new,
        ):
            if old.share is not new.share:
                raise OSError(errno.EXDEV, "these are two shared folders")
            yield old, new

    def _readlink(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string path."""
        with self._folders.place(fields.path()) as place:
            return _name(number, os.readlink(place.name, dir_fd=place.folder_fd))

    def _symlink(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string target, string path of the link: OpenSSH's order, which all
        clients have by now.

        We never follow a link, but programs on this side do: one that leads out of the
        folder is not made. (One that is moved later may lead out all the same.)
        """
        target, path = fields.path(), fields.path()
        with self._folders.place(path, writing=True) as place:
            _check_inside(place.parts[:-1], target)
            os.symlink(target, place.name, dir_fd=place.folder_fd)
        return _ok(number)

    # The rest.

    def _extended(self, number: bytes, fields: Fields) -> bytes:
        """Payload: string name of the extension, then what that has."""
        function = self._extensions.get(fields.string())
        if function is None:
            return status(number, Status.OP_UNSUPPORTED, "not supported")
        return function(number, fields)

    def _limits(self, number: bytes, fields: Fields) -> bytes:
        limits = (MAX_PACKET_BYTES, MAX_DATA_BYTES, MAX_DATA_BYTES, MOST_HANDLES)
        packed = b"".join(limit.to_bytes(8, "big") for limit in limits)
        return bytes([Reply.EXTENDED_REPLY]) + number + packed


def failure(number: bytes, error: OSError) -> bytes:
    """Return the STATUS reply for the error of a system call."""
    code = protocol.STATUS_OF_ERRNO.get(error.errno or 0, Status.FAILURE)
    # Not str(error): that has our paths in it.
    return status(number, code, error.strerror or "failed")


def _ok(number: bytes) -> bytes:
    return status(number, Status.OK)


def _handle(number: bytes, handle: bytes) -> bytes:
    return bytes([Reply.HANDLE]) + number + protocol.string(handle)


def _attributes(number: bytes, found: os.stat_result) -> bytes:
    return bytes([Reply.ATTRS]) + number + protocol.attributes(found)


def _statvfs(number: bytes, found: os.statvfs_result, read_only: bool) -> bytes:
    packed = protocol.statvfs_reply(found, read_only)
    return bytes([Reply.EXTENDED_REPLY]) + number + packed


def _name(number: bytes, name: bytes) -> bytes:
    """Return a NAME reply with one name, and no attributes."""
    packed = protocol.string(name) * 2 + (0).to_bytes(4, "big")
    return bytes([Reply.NAME]) + number + (1).to_bytes(4, "big") + packed


def _of_the_top() -> os.stat_result:
    """Say what the folder is that all shares are in: ours, and closed to all."""
    mode = stat.S_IFDIR | 0o111
    return os.stat_result((mode, 0, 0, 1, os.getuid(), os.getgid(), 0, 0, 0, 0))


def _exists(place: Place) -> bool:
    try:
        place.stat()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _opened(place: Place, flags: int) -> Iterator[int]:
    fd = place.open(flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _change(opened: OpenFile, wanted: Attributes) -> None:
    if wanted.size is not None:
        if not opened.writable:
            raise OSError(errno.EACCES, "the file is open for reading only")
        os.ftruncate(opened.fd, wanted.size)
        opened.written = True
    if wanted.mode is not None:
        os.fchmod(opened.fd, wanted.mode & MODE_MASK)
    if wanted.times_s is not None:
        os.utime(opened.fd, wanted.times_s)
    if wanted.owner is not None:
        os.fchown(opened.fd, *wanted.owner)


def _rename_noreplace(old: Place, new: Place) -> None:
    """Rename, unless the new name is taken."""
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is not None:
        ctypes.set_errno(0)
        arguments = (old.folder_fd, old.name, new.folder_fd, new.name)
        if renameat2(*arguments, RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        # Which some file systems do not have.
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number))
    if _exists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(old.name, new.name, src_dir_fd=old.folder_fd, dst_dir_fd=new.folder_fd)


def _check_inside(folder: tuple[bytes, ...], target: bytes) -> None:
    """Raise OSError if a link in `folder` with this target leads out of the share.

    Steps up are counted, and stand first: behind a name they would begin wherever that
    leads, if it is a link itself.
    """
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    steps_up = parts.count(b"..")
    if target.startswith(b"/") or steps_up > len(folder) or b".." in parts[steps_up:]:
        raise OSError(errno.EACCES, "a link may not lead out of the folder")


def _tell_removed(place: Place) -> None:
    if place.share.watch is not None:
        with _logged():
            place.share.watch.on_remove(place.share.local_path(place.parts))


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Whoever watches may fail; the client has nothing to do with it."""
    try:
        yield
    except Exception:
        log.exception("who watches a shared folder failed")
