"""A real OpenSSH server of our own: one folder, one user key, one free port."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rtunnel.bench.ports import LOOPBACK, bound, free_port, wait_listening

SSHD: Final = (
    shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin:/bin") or "/usr/sbin/sshd"
)
STOP_TIMEOUT_S: Final = 10.0
# Since this version sshd keeps an address out for a while, after logins that failed.
WITH_PENALTIES: Final = (9, 8)


@functools.cache
def version() -> tuple[int, int]:
    """Return the version of the OpenSSH that is here, from what its sshd says."""
    said = subprocess.run([SSHD, "-V"], capture_output=True, text=True).stderr
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True, slots=True)
class Login:
    """What a client needs to get into a server of ours at 127.0.0.1."""

    port: int
    user: str
    user_key: Path
    known_hosts: Path

    def by(self, port: int) -> Login:
        """Return the login for the same server where it is reached by another port."""
        line = self.known_hosts.read_text().partition(" ")[2]
        known_hosts = self.known_hosts.with_name(f"known_hosts_{port}")
        known_hosts.write_text(f"[{LOOPBACK}]:{port} {line}")
        return Login(port, self.user, self.user_key, known_hosts)

    def words(self) -> list[str]:
        """Return this as arguments of a command line, for `read`."""
        return [str(self.port), self.user, str(self.user_key), str(self.known_hosts)]

    @classmethod
    def read(cls, words: Sequence[str]) -> Self:
        """Return the login that `words` describes."""
        port, user, user_key, known_hosts = words
        return cls(int(port), user, Path(user_key), Path(known_hosts))

    def ssh_command(self, *arguments: str) -> list[str]:
        """Return an ssh(1) command line for this server; `arguments` are options."""
        return [
            "ssh",
            "-F", "none",
            "-p", str(self.port),
            "-i", str(self.user_key),
            "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}",
            "-o", "StrictHostKeyChecking=yes",
            "-o", "ExitOnForwardFailure=yes",
            *arguments,
            f"{self.user}@{LOOPBACK}",
        ]  # fmt: skip


class Sshd:
    """Run sshd in the foreground on 127.0.0.1; `stop()` ends it and its sessions.

    `options` are lines of sshd_config(5) that come before the defaults, so they
    win. `key_options` go in front of the key in authorized_keys.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        key_options: str = "",
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.port = port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.user_key = folder / "user_key"
        self.host_key = folder / "host_key"
        for key in (self.user_key, self.host_key):
            if not key.exists():
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)],
                    check=True,
                )
        self.authorized_keys = folder / "authorized_keys"
        public = self.user_key.with_suffix(".pub").read_text()
        self.authorized_keys.write_text(f"{key_options} {public}".lstrip())
        self.known_hosts = folder / "known_hosts"
        host_public = self.host_key.with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"[{LOOPBACK}]:{self.port} {host_public}")
        self.log = folder / "sshd.log"
        self.config = folder / "sshd_config"
        self.config.write_text(
            "\n".join(
                [
                    *options,
                    f"Port {self.port}",
                    f"ListenAddress {LOOPBACK}",
                    # For port 0 at localhost sshd takes a port that is free on ::1,
                    # and goes on without 127.0.0.1 if somebody has it there.
                    "AddressFamily inet",
                    f"HostKey {self.host_key}",
                    f"PidFile {folder / 'sshd.pid'}",
                    f"AuthorizedKeysFile {self.authorized_keys}",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "PermitRootLogin yes",
                    "AllowTcpForwarding yes",
                    "AllowStreamLocalForwarding yes",
                    "StreamLocalBindUnlink yes",
                    "MaxStartups 200",
                    *(["PerSourcePenalties no"] if version() >= WITH_PENALTIES else []),
                    "MaxSessions 1000",
                    "Subsystem sftp internal-sftp",
                    "LogLevel VERBOSE",
                    "",
                ]
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def login(self) -> Login:
        """What a client needs to get in."""
        return Login(self.port, self.user, self.user_key, self.known_hosts)

    def ssh_command(self, *arguments: str) -> list[str]:
        """Return an ssh(1) command line for this server; `arguments` are options."""
        return self.login.ssh_command(*arguments)

    def start(self) -> Self:
        """Start it, and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.config), "-E", str(self.log)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_listening(self.port)
        return self

    def sessions(self) -> list[int]:
        """Return the pids of the connections that this sshd serves, children first."""
        return list(self._sessions())

    def _sessions(self) -> dict[int, str]:
        """Return the pids, and the state of each (proc(5))."""
        assert self.process is not None
        children: dict[int, list[int]] = {}
        states: dict[int, str] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(stat.parent.name)
            states[pid] = fields[0]
            children.setdefault(int(fields[1]), []).append(pid)
        found: list[int] = []
        queue = [self.process.pid]
        while queue:
            for pid in children.get(queue.pop(), []):
                found.insert(0, pid)
                queue.append(pid)
        return {pid: states[pid] for pid in found}

    def freeze_sessions(self) -> None:
        """Stop every connection (SIGSTOP), also what it was just forking."""
        deadline = time.monotonic() + STOP_TIMEOUT_S  # for who waits for a disk
        while (
            running := [pid for pid, s in self._sessions().items() if s not in "TZX"]
        ) and time.monotonic() < deadline:
            self._signal(running, signal.SIGSTOP)

    def thaw_sessions(self) -> None:
        """Let every connection go on."""
        self._signal(self.sessions(), signal.SIGCONT)

    def kill_sessions(self) -> None:
        """Kill every connection (SIGKILL); the listener stays."""
        # sshd of OpenSSH 10 forks right behind its reply to a login, for root, too.
        # A child that was not found among the others would hold its connection.
        self.freeze_sessions()
        self._signal(self.sessions(), signal.SIGKILL)

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End the server and every connection that it serves."""
        if self.process is None:
            return
        self.kill_sessions()
        self.process.terminate()
        self.process.wait(STOP_TIMEOUT_S)
        self.process = None
        # A child that it was just forking has the listening socket for a moment yet. To
        # who looks then, the next sshd seems to listen, and resets his connection.
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while bound(self.port) and time.monotonic() < deadline:
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
