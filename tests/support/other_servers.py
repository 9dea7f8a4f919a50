"""SSH servers of other projects, and `connect()` to any server of the tests."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

import asyncssh

import rtunnel
from tests.support.ports import free_port, wait_listening
from tests.support.tunnels import TIMEOUT_S

HERE = Path(__file__).parent
DROPBEAR = shutil.which("dropbear", path="/usr/sbin:/usr/bin") or "/usr/sbin/dropbear"
CONCH_SERVER = HERE / "conch_server.py"
PASSWD_HOME = HERE / "passwd_home.c"


class Server(Protocol):
    """What `connect` has to know of a server on 127.0.0.1."""

    user: str
    port: int
    user_key: Path
    known_hosts: Path


def connect(
    server: Server, backend: str | None = None, **options: Any
) -> rtunnel.Tunnel:
    """Connect as a user of rtunnel does, with the server's own key and known_hosts."""
    return rtunnel.connect(
        f"{server.user}@127.0.0.1:{server.port}",
        identity_files=[server.user_key],
        known_hosts=server.known_hosts,
        config_file="none",
        agent=False,
        backend=backend,
        **options,
    )


class OtherServer:
    """A server of another project: its keys, and the files that a client needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.port = free_port()
        self.user_key = folder / "user_key"
        self.host_key = folder / "host_key"
        for key in (self.user_key, self.host_key):
            self.make_key(key)
        self.known_hosts = folder / "known_hosts"
        host_public = self.host_key.with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {host_public}")

    def make_key(self, path: Path) -> None:
        """Make an Ed25519 key and its .pub file."""
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> OtherServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class AsyncsshServer(OtherServer):
    """asyncssh in this process, on a thread with a loop of its own."""

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncssh")
        self._thread.start()
        self._acceptor = asyncio.run_coroutine_threadsafe(
            self._listen(), self._loop
        ).result(TIMEOUT_S)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=_ForwardingServer,
            server_host_keys=[str(self.host_key)],
            authorized_client_keys=str(self.user_key.with_suffix(".pub")),
        )

    async def _close(self) -> None:
        self._acceptor.close()
        await self._acceptor.wait_closed()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()


class _ForwardingServer(asyncssh.SSHServer):
    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True

    def unix_server_requested(self, listen_path: str) -> bool:
        return True

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        return True


class ServerProcess(OtherServer):
    """A server that is a process of its own; what it says is in `log`."""

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def start(self) -> None:
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_listening(self.port, TIMEOUT_S)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT_S)


class ConchServer(ServerProcess):
    """Twisted Conch with its own Unix users."""

    def command(self) -> list[str | Path]:
        authorized = self.user_key.with_suffix(".pub")
        return [sys.executable, CONCH_SERVER, str(self.port), self.host_key, authorized]


class DropbearServer(ServerProcess):
    """Debian's dropbear."""

    def make_key(self, path: Path) -> None:
        if path == self.user_key:
            super().make_key(path)
            return
        run("dropbearkey", "-t", "ed25519", "-f", path)
        lines = run("dropbearkey", "-y", "-f", path).splitlines()
        public = next(line for line in lines if line.startswith("ssh-ed25519 "))
        path.with_suffix(".pub").write_text(f"{public}\n")

    def command(self) -> list[str | Path]:
        place = f"127.0.0.1:{self.port}"
        pid = self.folder / "pid"
        return [DROPBEAR, "-F", "-E", "-p", place, "-P", pid, "-r", self.host_key]

    def environment(self) -> dict[str, str]:
        # It reads the authorized_keys of the user's home, and asks passwd for that.
        ssh = self.folder / ".ssh"
        ssh.mkdir(mode=0o700)
        authorized = ssh / "authorized_keys"
        shutil.copy(self.user_key.with_suffix(".pub"), authorized)
        for path, mode in ((self.folder, 0o700), (authorized, 0o600)):
            path.chmod(mode)
        library = self.folder / "passwd_home.so"
        run("cc", "-shared", "-fPIC", "-o", library, PASSWD_HOME, "-ldl")
        return {"HOME": str(self.folder), "LD_PRELOAD": str(library)}


def run(*command: str | Path) -> str:
    """Run a command that must succeed; return what it says."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
