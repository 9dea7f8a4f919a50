"""The `rtunnel` command in a process of its own, as a shell would run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from tests.support.sshd import Sshd

ROOT = Path(__file__).parent.parent.parent
MOST_ERRORS_BYTES = 1 << 24
# Make the terminal `argv[1]` the controlling one; stdin, stdout, stderr stay.
ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "rtunnel", *sys.argv[2:]])
"""


class Command:
    """Run `rtunnel` with these arguments; what is left of it is killed at the end.

    Without `terminal` (the slave end of a pty) it has no controlling terminal, as
    under cron or systemd. With `stderr`, `errors` has none. `environment` is added to
    that of the tests.
    """

    def __init__(
        self,
        *arguments: str,
        terminal: int | None = None,
        stderr: IO[str] | None = None,
        **environment: str,
    ) -> None:
        if terminal is None:
            command = [sys.executable, "-m", "rtunnel", *arguments]
            descriptors: tuple[int, ...] = ()
        else:
            command = [sys.executable, "-c", ON_TERMINAL, str(terminal), *arguments]
            descriptors = (terminal,)
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr or self._stderr,
            text=True,
            pass_fds=descriptors,
            start_new_session=terminal is None,
        )

    def line(self) -> str:
        """Return the next line of stdout; "" when it ended without one."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def port(self) -> int:
        """Return the port of the next line: `listening on host:PORT -> target`."""
        line = self.line()
        assert line.startswith("listening on "), f"{line!r}, {self.errors()}"
        return int(line.split()[2].rpartition(":")[2])

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(60)

    def errors(self) -> str:
        """Return what was written to stderr so far."""
        # Not by seek: the process writes where this file stands, too.
        return os.pread(self._stderr.fileno(), MOST_ERRORS_BYTES, 0).decode()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()


def open_arguments(
    sshd: Sshd,
    *more: str,
    key: Path | None = None,
    known_hosts: Path | None = None,
) -> list[str]:
    """Return `open` and the flags that reach this server, then `more`.

    `key` and `known_hosts` stand in for the ones that the server is reached with.
    """
    return [
        "open",
        *("-F", "none", "-p", str(sshd.port), "-i", str(key or sshd.user_key)),
        *("-o", "IdentitiesOnly=yes"),
        *("-o", f"UserKnownHostsFile={known_hosts or sshd.known_hosts}"),
        *more,
    ]
