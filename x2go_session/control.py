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
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import rtunnel
from x2go_session import commands, replies
from x2go_session.applications import Application, read_applications
from x2go_session.errors import (
    AccessDenied,
    ControlError,
    NoSuchSession,
    NotInstalled,
    SessionLimitReached,
)
from x2go_session.options import SessionOptions
from x2go_session.replies import Desktop, Mount, SessionInfo, StartedAgent
from x2go_session.session import Ports

log = logging.getLogger("x2go_session.control")

COMMAND_TIMEOUT_S: Final = 20.0
# These scripts take seconds on an idle server, and wait for the agent.
AGENT_TIMEOUT_S: Final = 90.0
LIST_TIMEOUT_S: Final = 40.0
APPLICATIONS_TIMEOUT_S: Final = 60.0
# How often the agent's state is looked at over there, and for how long at once.
STATE_PAUSE_S: Final = 0.2
STATE_WAIT_S: Final = 5.0
# How long an agent may take to end.
AGENT_END_S: Final = 10.0
SERVER_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
# sshd's MaxSessions is 10 by default, for SFTP and whatever else the user runs, too.
MOST_AT_ONCE: Final = 4
# What a shell reports when there is no such command.
NOT_FOUND: Final = 127
# Exit statuses of x2gostartagent and x2goresume-session.
SHADOW_DENIED: Final = 8
LIMIT_REACHED: Final = 9
AGENT_DIED: Final = 12
OVER: Final = 3
START_ATTEMPTS: Final = 5


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
        self,
        tunnel: rtunnel.Tunnel,
        timeout_s: float = COMMAND_TIMEOUT_S,
        server_path: str = SERVER_PATH,
    ) -> None:
        self.tunnel = tunnel
        self.timeout_s = timeout_s
        self._server_path = server_path
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        # What is asked once. Protected by _asked.
        self._asked = threading.Lock()
        self._home: str | None = None
        self._features: frozenset[str] | None = None

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
        script = f"({command} ); echo {end}:$?:"
        wrapped = (
            f"echo {begin}; env PATH={shlex.quote(self._server_path)} "
            f"sh -c {shlex.quote(script)}; echo {end}"
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
        self._verify(result, command.rpartition("&& ")[2].partition(" ")[0])
        return result

    @staticmethod
    def _verify(result: CommandResult, name: str) -> None:
        if result.status == 0:
            return
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

    def check_files(self) -> None:
        """Make sure that files can be put there. Raises `ControlError` if not."""
        try:
            with self._slots:
                self.tunnel.transport.open_sftp_client().close()
        except Exception as error:  # paramiko's, of any kind
            raise ControlError(
                f"the server has no SFTP for this user: {error}"
            ) from error

    # What there is on the server.

    def features(self, *, fresh: bool = False) -> frozenset[str]:
        """What the server's x2goserver can do; asked once, and again if `fresh`.

        Raises `NotInstalled` where there is none.
        """
        with self._asked:
            if self._features is None or fresh:
                self._features = replies.features(self.check("x2gofeaturelist").lines)
            return self._features

    def versions(self) -> dict[str, str]:
        """The versions of the components of x2goserver."""
        return replies.versions(self.check("x2goversion").lines)

    def session_limit(self) -> int | None:
        """How many sessions the user may have; None: any number.

        Raises `SessionLimitReached` when there are as many already.
        """
        said = self.check("x2gosessionlimit").stdout.strip()
        if said == "LIMIT":
            raise SessionLimitReached("the server allows this user no more sessions")
        return int(said) if said.isdecimal() else None

    def has_program(self, command: str) -> bool:
        """Whether the program of a command line is there."""
        find = commands.find_program(command)
        return find is None or self.run(find).status == 0

    def has_user(self, name: str) -> bool:
        """Whether the server has a user of this name."""
        return self.run(commands.words("getent", "passwd", "--", name)).status == 0

    def can_mount(self) -> bool:
        """Whether the server could mount our folders: it has FUSE's program."""
        return self.run("command -v fusermount || command -v fusermount3").status == 0

    def applications(self) -> list[Application]:
        """The applications that the server publishes."""
        return read_applications(self.applications_text())

    def applications_text(self) -> str:
        """The same as the server has them."""
        return self.check("x2gogetapps", APPLICATIONS_TIMEOUT_S).stdout

    def desktops(self) -> list[Desktop]:
        """The desktops that a SHADOW session can be made of."""
        return replies.desktops(self.desktop_lines())

    def desktop_lines(self) -> list[str]:
        """The same as the server lists them."""
        return self._own_host("x2golistdesktops").lines

    def servers(self) -> list[str]:
        """The servers that have sessions, of any user."""
        return [line for line in self.check("x2gogetservers").lines if line.strip()]

    # Sessions.

    def sessions(self) -> list[SessionInfo]:
        """The user's sessions on the server, suspended ones first."""
        return replies.sessions(self.session_lines())

    def session_lines(self) -> list[str]:
        """The same as the server lists them."""
        found = self._own_host("x2golistsessions").lines
        if "X2GO_LIST_SHADOWSESSIONS" in self.features():
            found += self._own_host("x2golistshadowsessions").lines
        return found

    def find_session(self, name: str) -> SessionInfo | None:
        """Return the session of this name, if the server lists it."""
        return next((info for info in self.sessions() if info.name == name), None)

    def state(self, name: str) -> str:
        """What the session's agent says of itself: RUNNING, SUSPENDED ...

        Empty when there is no agent, or not yet.
        """
        path = f"{self.session_folder(name)}/state"
        return self.run(commands.words("cat", "--", path)).stdout.strip()

    def wait_state(
        self, name: str, wanted: Collection[str], timeout_s: float = STATE_WAIT_S
    ) -> str:
        """Wait until the agent says one of these of itself; return what it says.

        After `timeout_s`, that is what it says then. It is asked over there, so that
        this is one command.
        """
        path = shlex.quote(f"{self.session_folder(name)}/state")
        turns = max(int(timeout_s / STATE_PAUSE_S), 1)
        said_so = "".join(f"{state}) ;; " for state in sorted(wanted) if state)
        # The agent empties the file before it writes it anew: an empty one says
        # nothing. Nothing stands for no agent only where there is no file.
        nothing = f"[ ! -e {path} ]" if "" in wanted else "false"
        said = self.run(
            f"n=0; until s=$(cat {path} 2>/dev/null); "
            f'case "$s" in {said_so}"") {nothing};; *) false;; esac '
            f"|| [ $n -ge {turns} ]; "
            f'do n=$((n+1)); sleep {STATE_PAUSE_S}; done; echo "$s"',
            timeout_s + self.timeout_s,
        )
        return said.stdout.strip()

    def start_agent(self, options: SessionOptions) -> StartedAgent:
        """Start a session. Its agent waits for our graphics for 60 s.

        The server chooses a random port that nobody listens on, but that may be taken
        all the same: the agent dies then, and another try gets another port.

        Raises `SessionLimitReached`, `AccessDenied` (shadowing), `NotInstalled`.
        """
        for _ in range(START_ATTEMPTS):
            result = self.run(commands.start_agent(options), AGENT_TIMEOUT_S)
            if result.status != AGENT_DIED:
                break
            log.info("trying again: %s", result.words_of_failure)
            if dead := replies.SESSION_NAME.search(result.stderr):
                self.terminate_session(dead[0])
                self.remove_folder(dead[0])
        words = result.words_of_failure
        if result.status == LIMIT_REACHED:
            raise SessionLimitReached(
                f"the server allows this user no more sessions: {words}"
            )
        if result.status == SHADOW_DENIED:
            raise AccessDenied(f"the desktop may not be shared: {words}")
        self._verify(result, "x2gostartagent")
        return replies.started_agent(result.lines)

    def resume_session(self, name: str, options: SessionOptions) -> Ports:
        """Resume a session; return its ports, which may be others than before.

        Raises `NoSuchSession` when it is over.
        """
        command = commands.resume_session(name, options)
        result = self.run(command, AGENT_TIMEOUT_S)
        if result.status == OVER or "failed to resume" in result.stderr:
            raise NoSuchSession(f"{name} is over: {result.words_of_failure}")
        self._verify(result, "x2goresume-session")
        return replies.resumed_ports(result.lines, name)

    def suspend_session(self, name: str) -> None:
        """Have a session suspended: its agent has begun with it when this returns.

        Raises `NoSuchSession` when its agent is gone.
        """
        result = self.run(commands.words("x2gosuspend-session", name), AGENT_TIMEOUT_S)
        if "failed to suspend" in result.stderr:
            raise NoSuchSession(f"{name} is over: {result.words_of_failure}")

    def terminate_session(self, name: str) -> None:
        """Have a session terminated. The server says nothing about names it lacks."""
        self.run(commands.words("x2goterminate-session", name), AGENT_TIMEOUT_S)

    def remove_folder(self, name: str) -> None:
        """Remove what a session that is over left of its folder."""
        folder = shlex.quote(self.session_folder(name))
        self.run(f'rm -rf -- "$(readlink -- {folder})" && rm -f -- {folder}')

    def has_agent(self, name: str, pid: int) -> bool:
        """Whether the agent of a session is a process over there."""
        return self.run(_agent_is_there(name, pid)).status == 0

    def end_agent(self, name: str, pid: int) -> None:
        """See that the agent of a session ends; kill it if it outlives its session."""
        turns = int(AGENT_END_S / STATE_PAUSE_S)
        self.run(
            f"there() {{ {_agent_is_there(name, pid)}; }}; n=0; "
            f"while there && [ $n -lt {turns} ]; "
            f"do n=$((n+1)); sleep {STATE_PAUSE_S}; done; "
            f"there && kill {pid} && sleep 1 && there && kill -KILL {pid}",
            AGENT_END_S + self.timeout_s,
        )

    def exit_message(self, name: str) -> str:
        """What the session's command wrote; the server keeps it for 10 s after it."""
        return self.run(commands.words("x2gocmdexitmessage", name)).stdout

    def mounts(self, name: str) -> list[Mount]:
        """The folders of clients that are mounted in a session."""
        return replies.mounts(self.mount_lines(name))

    def mount_lines(self, name: str) -> list[str]:
        """The same as the server lists them."""
        return self.check(commands.words("x2golistmounts", name)).lines

    def _own_host(self, command: str) -> CommandResult:
        return self.check(f"export HOSTNAME && {command}", LIST_TIMEOUT_S)

    @property
    def home(self) -> str:
        """The user's home folder on the server; asked once."""
        with self._asked:
            if self._home is None:
                home = self.check('stat -L -- "$HOME" >/dev/null && echo "$HOME"')
                self._home = posixpath.normpath(home.stdout.strip())
            return self._home

    def session_folder(self, session_name: str) -> str:
        """The folder of a session on the server, by the link in the home folder."""
        return f"{self.home}/.x2go/C-{session_name}"


def _agent_is_there(name: str, pid: int) -> str:
    """Return a test for sh(1); by its arguments, since numbers are given again."""
    argument = shlex.quote(f"X2GO-{name} ")
    return f"cat /proc/{pid}/cmdline 2>&1 | tr '\\0' ' ' | grep -q -- {argument}"


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
