"""What a shared folder gives: a large file copied over sshfs, by who serves it.

    python -m benchmarks.mounts --rounds 3

One sshd stands for the X2Go server; sshfs runs beside it with the options that
x2gomountdirs gives it, and reaches its peer through a port that the sshd listens on:

- `shared`: the SFTP server of shared folders, on a listener of a tunnel
- `sftp-server`: OpenSSH's, behind an sshd on the client, by `ssh -R`
- `paramiko`: `paramiko.SFTPServer` in the place of ours, as python-x2go has it

All files are in memory. Peers take turns in each round; figures are medians. CPU is
that of the whole machine: nothing else should run on it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

import rtunnel
from rtunnel.bench.environment import describe
from rtunnel.bench.ports import LOOPBACK, free_port, wait_listening
from rtunnel.bench.sshd import Login, Sshd
from x2go_session.sftp.folders import SharedFolders
from x2go_session.sftp.server import SftpServer

SFTP_SERVER: Final = "/usr/lib/openssh/sftp-server"
MEMORY_FOLDER: Final = Path("/dev/shm")
MIB: Final = 1024 * 1024
USER: Final = "me"
# Of /proc/stat: user, nice, system.
BUSY_FIELDS: Final = slice(1, 4)


@click.group(invoke_without_command=True, help=__doc__.splitlines()[0])
@click.option("--rounds", default=3, show_default=True)
@click.option("--mib", default=256, show_default=True, help="Size of the file.")
@click.option("--peer", "peers", multiple=True, help="Only this one; may be repeated.")
@click.pass_context
def main(context: click.Context, rounds: int, mib: int, peers: tuple[str, ...]) -> None:
    """Measure, unless this is one of the processes that serve."""
    if context.invoked_subcommand is not None:
        return
    for name, value in describe("").items():
        if name != "command":
            click.echo(f"{name:12} {value}")
    with TemporaryDirectory(dir=MEMORY_FOLDER, prefix="rtunnel-mounts-") as folder:
        _measure(Path(folder), rounds, mib, peers or tuple(PEERS))


def _measure(folder: Path, rounds: int, mib: int, peers: tuple[str, ...]) -> None:
    share, file = folder / "shared folder", folder / "file"
    share.mkdir()
    with file.open("wb") as writing:
        for _ in range(mib):
            writing.write(os.urandom(MIB))
    os.link(file, share / "file")
    behind = Sshd(folder / "behind")
    text = behind.config.read_text()
    behind.config.write_text(text.replace("internal-sftp", SFTP_SERVER))
    found: dict[str, list[tuple[float, ...]]] = {peer: [] for peer in peers}
    with Sshd(folder / "sshd") as sshd, behind:
        for number in range(rounds):
            for peer in peers:
                with (
                    PEERS[peer](sshd, behind, share) as login,
                    _mount(login, share, folder / "mount") as mount,
                ):
                    figures = [
                        *_copy(file, mount / "up", mib),
                        *_copy(mount / "file", folder / "down", mib),
                    ]
                for copy in (share / "up", folder / "down"):
                    subprocess.run(["cmp", str(file), str(copy)], check=True)
                    copy.unlink()
                found[peer].append(tuple(figures))
                click.echo(f"round {number + 1} {peer:12} {_row(figures)}", err=True)
    click.echo(f"\n{mib} MiB  {'to us':>19}  {'from us':>19}")
    for peer, rows in found.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        click.echo(f"{peer:12} {_row(medians)}")


def _row(figures: list[float]) -> str:
    up, up_cpu, down, down_cpu = figures
    return f"{up:5.0f} MB/s {up_cpu:5.1f} s/GB  {down:5.0f} MB/s {down_cpu:5.1f} s/GB"


def _copy(source: Path, target: Path, mib: int) -> tuple[float, float]:
    """Copy a file as cp does; return MB/s and CPU seconds per GB."""
    busy_s, started_s = _busy_s(), time.monotonic()
    subprocess.run(["cp", str(source), str(target)], check=True)
    megabytes = mib * MIB / 1e6
    rate = megabytes / (time.monotonic() - started_s)
    return rate, (_busy_s() - busy_s) / megabytes * 1000


def _busy_s() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return sum(map(int, fields[BUSY_FIELDS])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _mount(login: Login, share: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    options = (
        f"idmap=user,uid={os.getuid()},gid={os.getgid()},default_permissions,"
        f"ServerAliveInterval=300,IdentityFile={login.user_key},"
        f"UserKnownHostsFile={login.known_hosts}"
    )
    source = f"{login.user}@{LOOPBACK}:{share}"
    command = ["sshfs", "-F", "none", "-o", options, source, str(place)]
    command += ["-p", str(login.port)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    try:
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", str(place)], check=True)


@contextmanager
def _by_sftp_server(sshd: Sshd, behind: Sshd, share: Path) -> Iterator[Login]:
    port = free_port()
    forward = f"{LOOPBACK}:{port}:{LOOPBACK}:{behind.port}"
    ssh = subprocess.Popen(
        sshd.ssh_command("-N", "-R", forward), stdin=subprocess.DEVNULL
    )
    try:
        wait_listening(port)
        yield behind.login.by(port)
    finally:
        ssh.terminate()
        ssh.wait()


def _by_child(what: str) -> Callable[[Sshd, Sshd, Path], Any]:
    @contextmanager
    def peer(sshd: Sshd, behind: Sshd, share: Path) -> Iterator[Login]:
        command = [sys.executable, "-m", "benchmarks.mounts", "serve", what]
        child = subprocess.Popen(
            [*command, str(share), *sshd.login.words()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin, child.stdout:
            port, key, host_key = json.loads(child.stdout.readline())
            key_file, known_hosts = share.with_name("key"), share.with_name("known")
            key_file.touch(0o600)
            key_file.write_text(key)
            known_hosts.write_text(f"[{LOOPBACK}]:{port} {host_key}\n")
            yield Login(port, USER, key_file, known_hosts)
        child.wait()

    return peer


PEERS: Final[dict[str, Callable[[Sshd, Sshd, Path], Any]]] = {
    "shared": _by_child("shared"),
    "sftp-server": _by_sftp_server,
    "paramiko": _by_child("paramiko"),
}


@main.command()
@click.argument("what")
@click.argument("share", type=click.Path(path_type=Path))
@click.argument("login", nargs=4)
def serve(what: str, share: Path, login: tuple[str, ...]) -> None:
    """Serve a folder through a port of the sshd, until stdin ends."""
    into = Login.read(login)
    key, host_key = rtunnel.KeyPair.generate(), rtunnel.KeyPair.generate()
    with rtunnel.connect(
        f"{into.user}@{LOOPBACK}:{into.port}",
        identity_files=[str(into.user_key)],
        known_hosts=str(into.known_hosts),
        config_file="none",
        agent=False,
    ) as tunnel:
        attend = _shared(share, key, host_key)
        if what == "paramiko":
            attend = _paramiko(key, host_key)
        listener = tunnel.listen((LOOPBACK, 0), to=attend)
        said = [listener.port, key.private_text, host_key.public_line]
        click.echo(json.dumps(said))
        sys.stdin.read()


def _shared(
    share: Path, key: rtunnel.KeyPair, host_key: rtunnel.KeyPair
) -> Callable[[socket.socket], None]:
    folders = SharedFolders()
    folders.add(share)
    server = rtunnel.SubsystemServer(
        "sftp",
        lambda conn: SftpServer(folders, conn).serve(),
        user=USER,
        key=key,
        host_key=host_key,
    )
    return server.attend


class _Door(paramiko.ServerInterface):
    def __init__(self, key: bytes) -> None:
        self._key = key

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        right = key.asbytes() == self._key
        return AUTH_SUCCESSFUL if right else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED


class _Files(paramiko.SFTPServerInterface):
    """The least that sshfs needs, without any confinement."""

    def stat(self, path: str) -> Any:
        return self.lstat(path)

    def lstat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def open(self, path: str, flags: int, attr: Any) -> Any:
        mode = "rb" if not flags & os.O_ACCMODE else "r+b"
        file = os.fdopen(os.open(path, flags, 0o600), mode, buffering=0)
        handle = paramiko.SFTPHandle(flags)
        handle.readfile = handle.writefile = file  # type: ignore[attr-defined]
        handle.stat = lambda: paramiko.SFTPAttributes.from_stat(  # type: ignore[method-assign]
            os.fstat(file.fileno())
        )
        return handle


def _paramiko(
    key: rtunnel.KeyPair, host_key: rtunnel.KeyPair
) -> Callable[[socket.socket], None]:
    pkey = paramiko.Ed25519Key.from_private_key(io.StringIO(host_key.private_text))

    def attend(conn: socket.socket) -> None:
        transport = paramiko.Transport(conn)
        transport.add_server_key(pkey)
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files)
        transport.start_server(server=_Door(key.blob))
        transport.join()

    return attend


if __name__ == "__main__":
    for program in ("sshfs", "fusermount3", "ssh"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is needed: apt-get install sshfs fuse3")
    main()
