"""The control session: commands on the X2Go server, and small files put there.

Each command is wrapped as

    echo X2GODATABEGIN:<id>; env PATH=... sh -c '(<command>); echo ...'; echo ...

for three reasons. What a .bashrc prints stands outside of the markers. The status of
the command is told behind them, since that of the channel is always the last echo's.
And there is a shell between the login shell and the command: a server script notes the
parent of its parent, and another kills that process later, if it is sshd; with one
shell less it is our own connection.
"""

from __future__ import annotations

import logging
import posixpath
import shlex
import threading
import uuid
from dataclasses import dataclass
from typing import Final

import rtunnel
from x2go_session.errors import ControlError, NotInstalled

log = logging.getLogger("x2go_session.control")

COMMAND_TIMEOUT_S: Final = 20.0
SERVER_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
# sshd's MaxSessions is 10 by default, for SFTP and whatever else the user runs, too.
MOST_AT_ONCE: Final = 4
# What a shell reports when there is no such command.
NOT_FOUND: Final = 127


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command of the server wrote between the markers, and its status."""

    stdout: str
    stderr: str
    status: int

    @property
    def lines(self) -> list[str]:
        """The lines of stdout."""
        return self.stdout.splitlines()

    @property
    def words_of_failure(self) -> str:
        """What the server said about what went wrong, in one line."""
        text = " ".join((self.stderr.strip() or self.stdout.strip()).split())
        return text or f"status {self.status}, without a word"


class Control:
    """Commands and file puts over one tunnel. Any thread; each call blocks.

    All raise `ControlError`, and what the tunnel raises: `ConnectionLost`,
    `RequestTimeout` when a command does not end in time, `ChannelOpenError`.
    """

    def __init__(
        self, tunnel: rtunnel.Tunnel, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        self.tunnel = tunnel
        self.timeout_s = timeout_s
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._lock = threading.Lock()
        self._home: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the connection stands, as far as this side knows. Never blocks."""
        return bool(self.tunnel.transport.is_active())

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        """Run a shell command; return what it wrote, whatever its status.

        `command` is for sh(1) on the server: quote what is not yours (`shlex.quote`).
        `timeout_s` covers the whole of it.
        """
        marker = uuid.uuid4().hex
        begin, end = f"X2GODATABEGIN:{marker}", f"X2GODATAEND:{marker}"
        # The subshell: `exit` in a command ends that, and the status is still told.
        script = f"({command}\n); echo {end}:$?:"
        wrapped = (
            f"echo {begin}; env PATH={SERVER_PATH} sh -c {shlex.quote(script)}; "
            f"echo {end}"
        )
        log.debug("running: command=%s", command.partition(" ")[0])
        with self._slots:
            output = rtunnel.run_command(
                self.tunnel.transport,
                wrapped,
                self.timeout_s if timeout_s is None else timeout_s,
            )
        stderr = output.stderr.decode(errors="replace")
        return _between(
            output.stdout.decode(errors="replace"), stderr, begin, end, command
        )

    def check(self, command: str, timeout_s: float | None = None) -> CommandResult:
        """Run a command; raise `ControlError` with the server's words if it failed."""
        result = self.run(command, timeout_s)
        if result.status == 0:
            return result
        name = command.split(None, 1)[0]
        if result.status == NOT_FOUND:
            raise NotInstalled(
                f"the server has no {name}: is x2goserver installed there? It said: "
                f"{result.words_of_failure}"
            )
        raise ControlError(f"{name} failed on the server: {result.words_of_failure}")

    def put_file(self, path: str, content: bytes, mode: int = 0o600) -> None:
        """Write a small file on the server, with this mode from the start."""
        with self._slots:
            try:
                rtunnel.put_file(
                    self.tunnel.transport, path, content, mode, self.timeout_s
                )
            except TimeoutError:
                raise  # as it is: RequestTimeout
            except OSError as error:
                raise ControlError(
                    f"the server would not have {path} written: {error}"
                ) from error

    @property
    def home(self) -> str:
        """The user's home folder on the server; asked once."""
        with self._lock:
            if self._home is None:
                home = self.check('stat -L -- "$HOME" >/dev/null && echo "$HOME"')
                self._home = posixpath.normpath(home.stdout.strip())
            return self._home

    def session_folder(self, session_name: str) -> str:
        """The folder of a session on the server, by the link in the home folder."""
        return f"{self.home}/.x2go/C-{session_name}"


def _between(
    stdout: str, stderr: str, begin: str, end: str, command: str
) -> CommandResult:
    """Take what is between the markers; the second may stand behind data in a line."""
    name = command.partition(" ")[0]
    _, found, rest = stdout.partition(begin)
    if not found:
        words = " ".join((stderr.strip() or stdout.strip()).split())
        raise ControlError(
            f"the server did not run {name}: {words or 'it said nothing'}; its login "
            "shell must be one that runs commands, as sh(1) does"
        )
    text, found, rest = rest.removeprefix("\r").removeprefix("\n").partition(end)
    if not found:
        raise ControlError(f"the answer of {name} was cut off: {text[-200:]!r}")
    status = rest.split(":")[1] if rest.startswith(":") else ""
    if not status.isdigit():
        raise ControlError(f"{name} ended without a status: {stderr.strip()}")
    return CommandResult(text, stderr, int(status))
