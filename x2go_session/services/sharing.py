"""Folder sharing: folders of this machine, mounted on the server.

The server listens on the session's sharing port for us, and its sshfs connects to that;
who answers is an SSH server inside of this process, which knows one key, starts SFTP
and nothing else, and serves the shared folders and nothing else. Keys are made when
the service starts, and are gone when it stops.

`docs/x2go-sharing.md` tells how it is done, and what is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rtunnel
from rtunnel.errors import PortInUse, RTunnelError
from x2go_session.errors import ServiceError, X2GoError
from x2go_session.events import (
    Event,
    FolderNotShared,
    FolderShared,
    FolderUnshared,
)
from x2go_session.services import FileEvent, FileEventKind, ShareKind
from x2go_session.session import Session
from x2go_session.sftp.folders import Share, SharedFolders
from x2go_session.sftp.server import SftpServer
from x2go_session.sftp.watch import FolderWatch

log = logging.getLogger("x2go_session.services.sharing")

LOOPBACK: Final = "127.0.0.1"
# The server gives sshfs 30 s for each mount.
MOUNT_TIMEOUT_S: Final = 60.0
# Each mount is one connection. As sshd takes that have not logged in (MaxStartups).
MOST_CLIENTS: Final = 100
# Between the private key and the host key in the file that the server wants.
HOST_KEY_MARK: Final = "----BEGIN RSA IDENTITY----"
# Whatever the scripts of the server cannot take: they split at colons, give a path to
# a shell in double quotes, use it as a regular expression, and drop tildes.
_HARMFUL: Final = re.compile(r"[^\w./ @=,%-]")
SPOOLS: Final = (ShareKind.PRINT_SPOOL, ShareKind.MIMEBOX)
_MOUNTED: Final = re.compile(r"^mount .* ok\s*$", re.MULTILINE)
_MOUNT_POINT: Final = re.compile(r'"([^"]+)" -p \d+\s*$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder that is shared, or will be when the session runs again.

    `mount_point` is its place on the server; empty while it is not mounted.
    """

    folder: Path
    kind: ShareKind
    read_only: bool
    mount_point: str


class _Entry:
    """What was asked for, and what came of it."""

    def __init__(self, folder: Path, kind: ShareKind, read_only: bool) -> None:
        self.folder = folder
        self.kind = kind
        self.read_only = read_only
        self.watch: FolderWatch | None = None
        # While it is mounted.
        self.share: Share | None = None
        self.served_as = ""
        self.mount_point = ""


class _Teller(FolderWatch):
    """Tells a function what happens in a folder."""

    def __init__(self, on_file: Callable[[FileEvent], object]) -> None:
        self._on_file = on_file

    def on_close(self, path: Path, written: bool) -> None:
        if written:
            self._on_file(FileEvent(FileEventKind.CLOSED, path))

    def on_rename(self, path_from: Path, path_to: Path) -> None:
        self._on_file(FileEvent(FileEventKind.RENAMED, path_to))

    def on_remove(self, path: Path) -> None:
        self._on_file(FileEvent(FileEventKind.REMOVED, path))


class Sharing:
    """Shares folders of this machine with a session, as long as it runs.

    What is shared is remembered: it is mounted when the session starts, and again when
    it was resumed. `encodings` are those of file names here and on the server, where
    they differ. Methods may be called from any thread; one share is mounted at a time.
    """

    name: Final = "sharing"

    def __init__(self, encodings: tuple[str, str] | None = None) -> None:
        self._encodings = encodings
        # Held while the server mounts and unmounts: it has one key file a session.
        self._mounting = threading.Lock()
        # Protected by _mounting.
        self._entries: dict[Path, _Entry] = {}
        self._session: Session | None = None
        self._running: _Running | None = None

    @property
    def port(self) -> int:
        """Its port on the server while it runs, else 0."""
        running = self._running
        return running.listener.port if running else 0

    @property
    def listener(self) -> rtunnel.Listener | None:
        """The handle of the port while it runs."""
        running = self._running
        return running.listener if running else None

    @property
    def environment(self) -> Mapping[str, str]:
        """Nothing: the folders are where the server mounts them."""
        return {}

    @property
    def folders(self) -> list[SharedFolder]:
        """What is shared, in the order in which it was asked for. Never blocks."""
        return [
            SharedFolder(entry.folder, entry.kind, entry.read_only, entry.mount_point)
            for entry in list(self._entries.values())
        ]

    def start(self, session: Session) -> None:
        """Open the port, and mount what is to be shared. Blocks.

        A folder that cannot be mounted is a `FolderNotShared` event. Raises
        `ServiceError` where the server cannot mount at all, and what `Tunnel.listen`
        raises.
        """
        if not session.control.can_mount():
            raise ServiceError(
                "no folder sharing: the server has no fusermount; install fuse3 and "
                "sshfs there"
            )
        told: list[Event] = []
        with self._mounting:
            # Left by a connection that was lost: the server would take new mounts of
            # the same folders for mounted already.
            if session.control.mounts(session.name):
                _unmount_all(session)
            self._running = _Running(session)
            self._session = session
            for entry in list(self._entries.values()):
                try:
                    told.append(self._mount(self._running, session, entry))
                except (X2GoError, RTunnelError, OSError) as error:
                    told.append(_not_shared(session, entry.folder, error))
        for event in told:
            session.events.emit(event)

    def stop(self) -> None:
        """Unmount all, close the port, forget the keys. Blocks; raises nothing."""
        with self._mounting:
            running, session = self._running, self._session
            self._running, self._session = None, None
            for entry in self._entries.values():
                entry.share, entry.mount_point = None, ""
            if running is None or session is None:
                return
            if running.has_mounted and session.control.is_alive:
                with contextlib.suppress(X2GoError, RTunnelError):
                    _unmount_all(session)
            running.close()

    def share(
        self,
        folder: Path,
        *,
        kind: ShareKind = ShareKind.FOLDER,
        read_only: bool = False,
        on_file: Callable[[FileEvent], object] | None = None,
    ) -> None:
        """Mount a local folder on the server; again after every resume.

        `on_file` is called on a thread of the SFTP server, which waits for it. Blocks
        until it is mounted. Raises `ServiceError`, with the server's words; then it
        is not shared. Before `start` it is remembered, and mounted then.
        """
        folder = folder.absolute()
        try:
            is_there = folder.is_dir()
        except OSError as error:  # may not be looked at, or no system knows such a name
            raise ServiceError(f"cannot share {folder}: {error.strerror}") from error
        if not is_there:
            raise ServiceError(f"cannot share {folder}: there is no such folder here")
        event: Event | None = None
        with self._mounting:
            if folder in self._entries:
                raise ServiceError(f"{folder} is shared already")
            entry = _Entry(folder, kind, read_only)
            entry.watch = _Teller(on_file) if on_file is not None else None
            self._entries[folder] = entry
            running, session = self._running, self._session
            if running is not None and session is not None:
                try:
                    event = self._mount(running, session, entry)
                except BaseException as error:
                    del self._entries[folder]
                    if isinstance(error, OSError):
                        raise ServiceError(f"cannot share {folder}: {error}") from error
                    raise
        if event is not None and session is not None:
            session.events.emit(event)

    def unshare(self, folder: Path) -> None:
        """Unmount it, and forget it. Blocks.

        Raises `ServiceError` if it is not shared, or the server cannot unmount it, as
        long as a program there uses it; then it stays shared. On a connection that is
        lost it is only forgotten.
        """
        folder = folder.absolute()
        with self._mounting:
            entry = self._entries.get(folder)
            if entry is None:
                raise ServiceError(f"{folder} is not shared")
            session, running = self._session, self._running
            if entry.mount_point and session is not None and running is not None:
                if entry.kind in SPOOLS:
                    # The server has no command that forgets a spool alone, and mounts
                    # none that it remembers: so the empty mount is kept.
                    running.kept[entry.kind] = entry
                else:
                    self._unmount(session, entry)
                if entry.share is not None:
                    running.folders.remove(entry.share)
            del self._entries[folder]
        if session is not None:
            session.events.emit(FolderUnshared(session=session.name, folder=folder))

    def unshare_all(self) -> None:
        """Unshare every folder; raise the first `ServiceError` after the last one."""
        errors = []
        for shared in self.folders:
            try:
                self.unshare(shared.folder)
            except ServiceError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # Under _mounting.

    def _unmount(self, session: Session, entry: _Entry) -> None:
        try:
            _unmount(session, entry)
        except RTunnelError:
            # With the connection the mount is lost, too.
            if session.control.is_alive:
                raise

    def _mount(self, running: _Running, session: Session, entry: _Entry) -> Event:
        """Have the server mount a folder. Raises `ServiceError`, OSError."""
        others = (other for other in self._entries.values() if other is not entry)
        names = {mount_name(other.served_as) for other in others}
        entry.served_as = served_path(entry.folder, names)
        kept = running.kept.pop(entry.kind, None)
        if kept is not None:
            entry.served_as = kept.served_as
        share = running.folders.add(
            entry.folder,
            served_as=os.fsencode(entry.served_as),
            read_only=entry.read_only,
            watch=entry.watch,
        )
        try:
            entry.mount_point = (
                kept.mount_point
                if kept is not None
                else self._ask_for_mount(running, session, entry)
            )
        except BaseException:
            running.folders.remove(share)
            entry.served_as = ""
            raise
        entry.share = share
        running.has_mounted = True
        log.info("mounted: folder=%s place=%s", entry.folder, entry.mount_point)
        return FolderShared(
            session=session.name, folder=entry.folder, mount_point=entry.mount_point
        )

    def _ask_for_mount(self, running: _Running, session: Session, entry: _Entry) -> str:
        control = session.control
        key = f"{control.home}/.x2go/ssh/key.z{session.agent_pid}"
        removed = f"rm -f {shlex.quote(key)} {shlex.quote(key + '.ident')}"
        control.put_file(key, running.key_bundle)
        suffix = "" if entry.kind is ShareKind.REMOVABLE else entry.kind.value
        what = f"{entry.served_as}{suffix}__REVERSESSH_PORT__{running.listener.port}"
        words = (
            "x2gomountdirs",
            "rem" if entry.kind is ShareKind.REMOVABLE else "dir",
            session.name,
            session.client_user,
            key,
            what,
        )
        result = control.run(
            f"{self._iconv()}export HOSTNAME && {shlex.join(words)}; {removed}",
            MOUNT_TIMEOUT_S,
        )
        if not _MOUNTED.search(result.stdout):
            raise ServiceError(
                f"the server cannot mount {entry.folder}: {result.words_of_failure}"
            )
        found = _MOUNT_POINT.search(result.stdout)
        return found[1] if found else mount_name(entry.served_as)

    def _iconv(self) -> str:
        if self._encodings is None:
            return ""
        ours, theirs = (shlex.quote(name) for name in self._encodings)
        return f"export X2GO_ICONV=modules=iconv,from_code={ours},to_code={theirs} && "


class _Running:
    """What stands between `start` and `stop`: port, keys, SSH server."""

    def __init__(self, session: Session) -> None:
        key, host_key = rtunnel.KeyPair.generate(), rtunnel.KeyPair.generate()
        self.folders = SharedFolders()
        # The server has something to forget, even if it is not mounted any more.
        self.has_mounted = False
        # Spools that are mounted without being shared, by kind.
        self.kept: dict[ShareKind, _Entry] = {}
        self.key_bundle = (
            f"{key.private_text}{HOST_KEY_MARK}{host_key.public_line}"
        ).encode()
        self._server = rtunnel.SubsystemServer(
            "sftp", self._serve, user=session.client_user, key=key, host_key=host_key
        )
        try:
            self.listener = self._listen(session, session.ports.sharing)
        except PortInUse:
            # The server keeps nobody from taking a port that it gave to a session;
            # x2gomountdirs takes any.
            self.listener = self._listen(session, 0)

    def _listen(self, session: Session, port: int) -> rtunnel.Listener:
        return session.tunnel.listen(
            (LOOPBACK, port),
            to=self._server.attend,
            name=f"folders of {session.name}",
            max_connections=MOST_CLIENTS,
        )

    def _serve(self, conn: socket.socket) -> None:
        SftpServer(self.folders, conn).serve()

    def close(self) -> None:
        """Share nothing more, close the port, and wait for the threads."""
        self.folders.clear()
        with contextlib.suppress(RTunnelError):
            self.listener.close()
        self._server.close()
        # Each holds its folder open.
        self.kept.clear()


def served_path(folder: Path, taken: set[str]) -> str:
    """Return the path by which the server shall know a folder.

    That is its own, as far as the scripts of the server can take it: they have
    trouble with colons, quotes and more. `taken` are names of mount points.
    """
    path = _HARMFUL.sub("_", str(folder))
    served, number = path, 2
    while mount_name(served) in taken:
        served, number = f"{path}_{number}", number + 1
    return served


def mount_name(served: str) -> str:
    """Return the name that the server makes of a path for its mount point."""
    return served.replace("/", "_").replace(" ", "_")


def _unmount(session: Session, entry: _Entry) -> None:
    """Unmount a folder, and have the server forget it. Raises `ServiceError`.

    x2goumount-session forgets a mount even if it is in use and stays: so the real
    unmounting comes first.
    """
    place = shlex.quote(entry.mount_point)
    mounted = f"grep -qF {shlex.quote(f' {entry.mount_point} ')} /proc/self/mounts"
    forget = shlex.join(["x2goumount-session", session.name, entry.mount_point])
    result = session.control.run(
        f"if {mounted}; then fusermount -u {place}; fi && export HOSTNAME && {forget}",
        MOUNT_TIMEOUT_S,
    )
    if result.status != 0:
        raise ServiceError(
            f"the server cannot unmount {entry.folder}: {result.words_of_failure}; "
            "does a program there use it?"
        )


def _unmount_all(session: Session) -> None:
    session.control.run(
        f"export HOSTNAME && {shlex.join(['x2goumount-session', session.name])}",
        MOUNT_TIMEOUT_S,
    )


def _not_shared(session: Session, folder: Path, error: Exception) -> Event:
    log.warning("not mounted: folder=%s error=%s", folder, error)
    return FolderNotShared(session=session.name, folder=folder, reason=str(error))
