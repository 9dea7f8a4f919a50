"""Gateways for the tests, and ssh(1) as their client."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rtunnel.gateway import Gateway
from tests.support.other_servers import run
from tests.support.sshd import wait_until
from tests.support.tunnels import Target

ALLOCATED = "Allocated port "

Serve = Callable[[socket.socket], None]


class Guest:
    """Somebody with a key, who knows a gateway's host key."""

    def __init__(
        self, folder: Path, name: str = "guest", kind: str = "ed25519"
    ) -> None:
        self.user = name
        self.user_key = folder / f"{name}_key"
        run("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", self.user_key)
        self.public = self.user_key.with_suffix(".pub").read_text()
        self.known_hosts = folder / f"{name}_known_hosts"
        self.port = 0

    def meet(self, gateway: Gateway) -> Guest:
        """Learn where the gateway is, and its host key."""
        self.known_hosts.write_text(gateway.known_hosts_line())
        self.port = gateway.port
        return self

    def ssh(self, *arguments: str) -> Ssh:
        """Run ssh(1) to the gateway; it has no command line of its own."""
        return Ssh(
            "-F", "none",
            "-p", str(self.port),
            "-i", str(self.user_key),
            "-o", "IdentitiesOnly=yes",
            "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}",
            "-o", "StrictHostKeyChecking=yes",
            "-o", "ExitOnForwardFailure=yes",
            *arguments,
            f"{self.user}@127.0.0.1",
        )  # fmt: skip

    def forward(self, target: int, bind: str = "0", *options: str) -> Ssh:
        """Run `ssh -N -R`; it stands when `port` is known."""
        return self.ssh("-N", *options, "-R", f"{bind}:127.0.0.1:{target}")

    @contextlib.contextmanager
    def serving(self, serve: Serve, bind: str = "0", *options: str) -> Iterator[Ssh]:
        """Run a target, and `ssh -N -R` to it."""
        with Target(serve) as target, self.forward(target.port, bind, *options) as ssh:
            yield ssh


class Ssh:
    """One ssh(1) process; killed at the end of the block."""

    def __init__(self, *arguments: str) -> None:
        self._stderr = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        with open(self._stderr.name, "wb") as stderr:
            self.process = subprocess.Popen(
                ["ssh", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has written to stderr so far."""
        return Path(self._stderr.name).read_text()

    def port(self) -> int:
        """Return the port that the gateway chose; wait until it has."""
        wait_until(lambda: ALLOCATED in self.said or self.process.poll() is not None)
        assert ALLOCATED in self.said, self.said
        return int(self.said.partition(ALLOCATED)[2].split()[0])

    def status(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(20.0)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20.0)

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._stderr.close()


class GatewayServer(Guest):
    """A gateway, and the one guest who may use it."""

    def __init__(self, folder: Path, key_options: str = "", **options: Any) -> None:
        super().__init__(folder)
        line = f"{key_options} {self.public}".lstrip()
        self.gateway = Gateway(authorized_keys=[line], **options)

    def __enter__(self) -> GatewayServer:
        self.meet(self.gateway.start())
        return self

    def __exit__(self, *exc: object) -> None:
        self.gateway.close()
