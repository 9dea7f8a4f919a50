"""Folders of this machine, mounted back by real sshfs through a port of a plain sshd.

As x2gomountdirs does it, with its options of sshfs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rtunnel
from rtunnel import Listener, SubsystemServer, Tunnel
from tests.support.sshd import wait_until
from x2go_session.sftp.folders import SharedFolders
from x2go_session.sftp.server import SftpServer

USER = "somebody"
PATIENCE_S = 30.0


@dataclass
class Served:
    """An SFTP server behind a port of the sshd, and what a client needs to get in."""

    folders: SharedFolders
    server: SubsystemServer
    listener: Listener
    key_file: Path
    known_hosts: Path

    @property
    def options(self) -> list[str]:
        """Options for ssh, sftp and sshfs."""
        return [
            *("-F", "none", "-o", f"IdentityFile={self.key_file}"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"),
            *("-o", "PasswordAuthentication=no"),
        ]

    def run(
        self, program: str, *arguments: str, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ssh or sftp with these arguments; `text` is its stdin."""
        port = "-P" if program == "sftp" else "-p"
        command = [program, *self.options, port, str(self.listener.port), *arguments]
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=PATIENCE_S
        )


@contextmanager
def served(tunnel: Tunnel, folder: Path) -> Iterator[Served]:
    """Serve no folders yet through a port of the sshd; keys go into `folder`."""
    folders = SharedFolders()
    key, host_key = rtunnel.KeyPair.generate(), rtunnel.KeyPair.generate()
    server = SubsystemServer(
        "sftp",
        lambda conn: SftpServer(folders, conn).serve(),
        user=USER,
        key=key,
        host_key=host_key,
    )
    listener = tunnel.listen(("127.0.0.1", 0), to=server.attend)
    key_file, known_hosts = folder / "key", folder / "known_hosts"
    key_file.touch(0o600)
    key_file.write_text(key.private_text)
    known_hosts.write_text(f"[127.0.0.1]:{listener.port} {host_key.public_line}\n")
    try:
        yield Served(folders, server, listener, key_file, known_hosts)
    finally:
        listener.close()
        server.close()
        assert server.clients == 0


@contextmanager
def mounted(served: Served, path: Path, place: Path) -> Iterator[Path]:
    """Mount a path of the SFTP server at `place` by sshfs, beside the block."""
    place.mkdir(exist_ok=True)
    options = (
        f"idmap=user,uid={os.getuid()},gid={os.getgid()},default_permissions,"
        f"ServerAliveInterval=300,IdentityFile={served.key_file},"
        f"UserKnownHostsFile={served.known_hosts}"
    )
    command = ["sshfs", "-F", "none", "-o", options, f"{USER}@127.0.0.1:{path}"]
    command += [str(place), "-p", str(served.listener.port)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, stdin=-3
    )
    assert done.returncode == 0, done.stderr
    try:
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=True)
        wait_until(lambda: served.server.clients == 0, PATIENCE_S)


def check_fuse() -> None:
    """Make /dev/fuse if the machine has none, as containers do."""
    if not Path("/dev/fuse").exists():
        os.mknod("/dev/fuse", 0o020666, os.makedev(10, 229))
