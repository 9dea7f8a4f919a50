"""ssh(1) as the other half of a scenario."""

from __future__ import annotations

import subprocess

from tests.support.ports import bound
from tests.support.sshd import Sshd, wait_until


class SshClient:
    """`ssh -N` with these arguments, until the end of the block.

    `ports` are those that it, or its server, listens on when it is ready.
    """

    def __init__(
        self, sshd: Sshd, *arguments: str, ports: tuple[int, ...] = ()
    ) -> None:
        self._command = sshd.ssh_command("-N", *arguments)
        self._ports = ports

    def __enter__(self) -> SshClient:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(lambda: all(bound(port) for port in self._ports))
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(10)
