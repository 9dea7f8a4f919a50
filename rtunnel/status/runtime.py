"""Find the running processes of this user: each has a socket in a folder of its own.

The folder is in the user's runtime directory and open to nobody else, so that who is
able to connect is the user. A process answers there what it answers over HTTP on
loopback. A socket is put in place when it listens, so that one that refuses is what a
killed process has left, and is removed by whoever finds it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rtunnel.status.model import ProcessStatus, ReadyCheck, StatusSource, from_json
from rtunnel.status.server import StatusServer

log = logging.getLogger("rtunnel.status.runtime")

SUFFIX: Final = ".sock"
# A process that works answers within milliseconds.
ANSWER_TIMEOUT_S: Final = 3.0
# A status of 1000 listeners has half a megabyte.
MAX_STATUS_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A running process: what it says, or why it says nothing."""

    pid: int
    status: ProcessStatus | None
    error: str | None = None


@contextmanager
def published(
    source: StatusSource,
    http_on: tuple[str, int] | None = None,
    ready_check: ReadyCheck | None = None,
) -> Iterator[StatusServer | None]:
    """Let this process be seen while the block runs: `rtunnel status` finds it.

    With `http_on`, an address of loopback and a port, over HTTP too; the block gets
    that server. Raises `ConfigError` if it cannot be served there. A runtime folder
    that cannot be used is only logged: a tunnel does not need it.
    """
    with contextlib.ExitStack() as stack:
        server = None
        if http_on is not None:
            server = StatusServer(source, *http_on, ready_check)
            stack.enter_context(server)
        url = None if server is None else server.url

        def with_url() -> ProcessStatus:
            return replace(source(), url=url)

        try:
            stack.enter_context(_local_socket(with_url, ready_check))
        except OSError as error:
            log.warning("`rtunnel status` will not find this process: error=%s", error)
        yield server


def running() -> list[Found]:
    """Ask every running process of this user; the oldest first. Blocks."""
    found = []
    for folder in _folders():
        try:
            directory = _open_private(folder, create=False)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("not looked into: folder=%s error=%s", folder, error)
            continue
        try:
            for name in sorted(os.listdir(directory)):
                if name.endswith(SUFFIX) and not name.startswith("."):
                    one = _ask(directory, name)
                    if one is not None:
                        found.append(one)
        finally:
            os.close(directory)
    return sorted(
        found, key=lambda one: one.status.started.timestamp() if one.status else 0
    )


def _folders() -> list[Path]:
    """Return where sockets may be, the best place first.

    A service and a shell of one user may not agree on XDG_RUNTIME_DIR, so that all of
    them are looked into; RTUNNEL_RUNTIME_DIR names the only one.
    """
    uid = os.getuid()
    if chosen := os.environ.get("RTUNNEL_RUNTIME_DIR"):
        return [Path(chosen)]
    places = []
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(named):
        places.append(Path(named, "rtunnel"))
    places.append(Path(f"/run/user/{uid}/rtunnel"))
    places.append(Path(tempfile.gettempdir(), f"rtunnel-{uid}"))
    return list(dict.fromkeys(places))


def _open_private(folder: Path, *, create: bool) -> int:
    """Open a folder that is ours and that nobody else can look into.

    Raises OSError if it is somebody else's: it may have been put there to see us.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(directory)
        if found.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(directory, 0o700)
    except BaseException:
        os.close(directory)
        raise
    return directory


def _path(directory: int, name: str) -> str:
    # The path of a socket has at most 107 bytes, that of a folder may have more.
    return f"/proc/self/fd/{directory}/{name}"


@contextmanager
def _local_socket(
    source: StatusSource, ready_check: ReadyCheck | None
) -> Iterator[None]:
    """Serve on a socket in the first folder that can be used."""
    errors = []
    for folder in _folders():
        try:
            directory = _open_private(folder, create=True)
        except OSError as error:
            errors.append(error)
            continue
        break
    else:
        raise errors[0]
    _sweep(directory)
    name = f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(_path(directory, f".{name}"))
        os.chmod(_path(directory, f".{name}"), 0o600)
        sock.listen(16)
        os.rename(f".{name}", name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        sock.close()
        os.close(directory)
        raise
    try:
        with StatusServer(source, ready_check=ready_check, sock=sock):
            yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        os.close(directory)


def _sweep(directory: int) -> None:
    """Remove what killed processes have left. Does not wait for living ones."""
    for name in os.listdir(directory):
        if not name.endswith(SUFFIX):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                sock.connect(_path(directory, name))
            except ConnectionRefusedError:
                if not name.startswith("."):  # that one is about to listen
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=directory)
            except OSError:
                continue


def _ask(directory: int, name: str) -> Found | None:
    """Ask one process; None if it is gone."""
    pid_text = name.partition("-")[0]
    pid = int(pid_text) if pid_text.isascii() and pid_text.isdigit() else 0
    connection = _UnixConnection(_path(directory, name))
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        body = answer.read(MAX_STATUS_BYTES)
        if answer.status != 200:
            return Found(pid, None, f"it answers with status {answer.status}")
        return Found(pid, from_json(json.loads(body)))
    except FileNotFoundError:
        return None  # it ended just now
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Found(pid, None, str(error) or type(error).__name__)
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
