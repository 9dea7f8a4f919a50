"""A real X2Go server of our own: sshd for a user made for the run, on loopback.

Debian's x2goserver does the rest. The user, and all that it leaves behind (processes,
mounts, folders, rows of the session database), is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rtunnel
from rtunnel import Tunnel
from tests.support.sshd import Sshd, wait_until
from x2go_session.control import Control

DATABASE = Path("/var/lib/x2go/x2go_sessions")
NEEDED = (
    *("x2gostartagent", "x2goagent", "nxproxy", "Xvfb", "xterm", "xclock", "xwd"),
    *("sshfs", "useradd", "userdel", "xauth", "setxkbmap"),
)
# What a slow and busy machine may take for any single step.
PATIENCE_S = 30.0


class X2goServer(Sshd):
    """An sshd that lets one user in, and what x2goserver needs around it.

    `host`, `port`, `user`, `user_key` and `known_hosts` are what a client needs.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path) -> None:
        check_machine()
        user = f"x2gt{os.getpid()}"
        super().__init__(
            folder,
            f"AllowUsers {user}",
            # The second is where session brokers put their keys.
            "AuthorizedKeysFile .ssh/authorized_keys .x2go/authorized_keys",
        )
        self.user = user
        self.home = Path("/home") / user
        self.uid = 0

    def start(self) -> X2goServer:
        """Make the user and start sshd."""
        run("useradd", "--create-home", "--shell", "/bin/bash", self.user)
        # Without a password, but not locked: sshd refuses locked users.
        run("usermod", "--password", "*", self.user)
        entry = pwd.getpwnam(self.user)
        self.uid = entry.pw_uid
        ssh = self.home / ".ssh"
        ssh.mkdir()
        (ssh / "authorized_keys").write_text(
            self.user_key.with_suffix(".pub").read_text()
        )
        for path in (ssh, ssh / "authorized_keys"):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        super().start()
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What `rtunnel.connect` needs beside the destination."""
        return {
            "identity_files": [str(self.user_key)],
            "known_hosts": str(self.known_hosts),
            "config_file": "none",
            "agent": False,
        }

    @property
    def destination(self) -> str:
        """Whom `rtunnel.connect` connects to."""
        return f"{self.user}@{self.host}:{self.port}"

    def connect(self, **options: Any) -> Tunnel:
        """Open a tunnel to it."""
        return rtunnel.connect(self.destination, **{**self.options, **options})

    def processes(self) -> dict[int, str]:
        """Return the command lines of the user's processes."""
        return processes_of(self.uid)

    def mounts(self) -> list[str]:
        """Return where the user has something mounted (by FUSE)."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        # With octal escapes for blanks, and UTF-8 as it is.
        points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
        names = [os.fsdecode(point.encode("latin-1")) for point in points]
        return [name for name in names if f"/.x2go-{self.user}/" in name]

    def listening(self, port: int) -> bool:
        """Say whether somebody accepts connections on this port of the server."""
        with socket.socket() as sock:
            sock.settimeout(PATIENCE_S)
            return sock.connect_ex((self.host, port)) == 0

    def as_user(self, *command: str, timeout_s: float = PATIENCE_S) -> str:
        """Run a command as the user, with no SSH on the way; return its stdout."""
        return run("setpriv", "--reuid", self.user, "--regid", self.user,
                   "--init-groups", "env", "-C", str(self.home),
                   f"HOME={self.home}", f"USER={self.user}", f"LOGNAME={self.user}",
                   *command, timeout_s=timeout_s)  # fmt: skip

    def end_sessions(self) -> None:
        """End all X2Go sessions and whatever else the user runs, but for sshd's own."""
        keep = set(self.sessions())
        end_processes(self.uid, keep)
        self._forget()

    def stop(self) -> None:
        super().stop()
        if self.uid:
            end_processes(self.uid, set())
            self._forget()
            run("userdel", "--remove", "--force", self.user)
            self.uid = 0

    def _forget(self) -> None:
        """Remove mounts, and what sessions left in /tmp and the database."""
        for point in self.mounts():
            run("umount", "--lazy", point)
        with contextlib.closing(sqlite3.connect(DATABASE, timeout=PATIENCE_S)) as base:
            own = "(SELECT session_id FROM sessions WHERE uname = ?)"
            for table in ("mounts", "used_ports", "sessions"):
                base.execute(
                    f"DELETE FROM {table} WHERE session_id IN {own}", (self.user,)
                )
            base.commit()
        for link in (self.home / ".x2go").glob("C-*"):
            link.unlink(missing_ok=True)
        for folder in (Path("/tmp"), Path("/tmp/.X11-unix")):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.lstat().st_uid != self.uid:
                        continue
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()


def check_machine() -> None:
    """Fail with what is missing: tests are never skipped."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/lib/x2go"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if not DATABASE.exists():
        missing.append("the session database (x2godbadmin --createdb)")
    if socket.gethostname() in ("", "localhost", "(none)"):
        missing.append("a host name other than localhost")
    if os.geteuid() != 0:
        missing.append("root, who can make the user of the sessions")
    if missing:
        pytest.fail(f"the X2Go tests need {', '.join(missing)}: see .ci/prepare")
    sockets = Path("/tmp/.X11-unix")
    if not sockets.exists():
        sockets.mkdir()
        sockets.chmod(0o1777)
    fuse = Path("/dev/fuse")
    if not fuse.exists():
        os.mknod(fuse, 0o020666, os.makedev(10, 229))
    # As udev would have it, which containers do not run.
    fuse.chmod(0o666)


def run(*command: str, timeout_s: float = PATIENCE_S) -> str:
    """Run a command; return its stdout, or fail with its words."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


def processes_of(uid: int) -> dict[int, str]:
    """Return the command lines of the processes that a user runs, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid != uid:
                continue
            line = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found[int(folder.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def end_processes(uid: int, keep: set[int]) -> None:
    """End the processes of a user that exists for the tests alone."""
    deadline = time.monotonic() + PATIENCE_S
    number = signal.SIGTERM
    while pids := [pid for pid in processes_of(uid) if pid not in keep]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        assert time.monotonic() < deadline, processes_of(uid)
        time.sleep(0.1)
        number = signal.SIGKILL


class Display:
    """An X server without a screen, for the windows of a client."""

    def __init__(self, size: str = "1280x800x24") -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader) as number:
            self._process = subprocess.Popen(
                ["Xvfb", "-displayfd", str(writer), "-screen", "0", size,
                 "-nolisten", "tcp", "-noreset"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writer],
            )  # fmt: skip
            os.close(writer)
            self.name = f":{number.readline().strip()}"
        assert self.name != ":", "Xvfb did not start"

    def windows(self) -> str:
        """Return the tree of windows, as xwininfo prints it."""
        return run("xwininfo", "-display", self.name, "-root", "-tree")

    def colours(self) -> int:
        """Return how many different pixels its screen shows now."""
        done = subprocess.run(
            ["xwd", "-display", self.name, "-root", "-silent"],
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        # X11/XWDFile.h: 25 numbers; the first is the size of the header, the 20th
        # how many colours of 12 bytes follow it.
        numbers = [
            int.from_bytes(done.stdout[at : at + 4], "big") for at in range(0, 100, 4)
        ]
        pixels = memoryview(done.stdout)[numbers[0] + numbers[19] * 12 :]
        return len(set(pixels[: len(pixels) // 4 * 4].cast("I")))

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def x2go_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[X2goServer]:
    """One X2Go server for the whole run, for one user who has nothing."""
    server = X2goServer(tmp_path_factory.mktemp("x2go"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def client_display() -> Iterator[Display]:
    """The display of the client, where the windows of sessions are seen."""
    check_machine()
    display = Display()
    try:
        yield display
    finally:
        display.stop()


@pytest.fixture
def x2go_tunnel(x2go_server: X2goServer) -> Iterator[Tunnel]:
    """A tunnel to the X2Go server."""
    with x2go_server.connect() as tunnel:
        yield tunnel


@pytest.fixture
def control(x2go_tunnel: Tunnel) -> Control:
    """A control session on the X2Go server."""
    return Control(x2go_tunnel)


__all__ = ["Display", "X2goServer", "client_display", "control", "wait_until",
           "x2go_server", "x2go_tunnel"]  # fmt: skip
