"""Session channels, where they are switched on: commands, shells, SFTP, the agent.

All of it runs as who runs the gateway, in their home. A process gets a session of its
own (setsid), which is told by SIGHUP when its channel or its client is gone. A
terminal's end is opened by the process itself, so that it becomes its controlling one.

Which thread: paramiko asks on the transport's thread; each process has up to three
threads that carry bytes, and one of them sees its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pwd
import shutil
import signal
import socket
import struct
import tempfile
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import paramiko

from rtunnel.errors import RTunnelError
from rtunnel.gateway.loop import Loop
from rtunnel.gateway.users import Login
from rtunnel.ssh.connection import Connection

log = logging.getLogger("rtunnel.gateway.processes")

# As sshd: MaxSessions.
SESSIONS_MAX: Final = 10
CHUNK_BYTES: Final = 32_768
# What a terminal takes for the end of the input (VEOF, Ctrl-D).
END_OF_TERMINAL: Final = b"\x04"
# As AcceptEnv of Debian's sshd_config.
ENVIRONMENT_TAKEN: Final = ("LANG", "LC_")
ENVIRONMENT_BYTES_MAX: Final = 4096
AGENT_CHANNEL: Final = "auth-agent@openssh.com"
# Where distributions put it; it is on nobody's PATH.
SFTP_SERVER_FOLDERS: Final = os.pathsep.join(
    ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")
)
# Begins where a login does: at home.
_AT_HOME: Final = 'cd; exec "$0" "$@"'


def find_sftp_server() -> str | None:
    """Return where this machine has OpenSSH's server for SFTP."""
    return shutil.which("sftp-server", path=SFTP_SERVER_FOLDERS)


@dataclass(slots=True)
class _Session:
    """What was asked for on a channel before its process is started."""

    channel: paramiko.Channel
    environment: dict[str, str] = field(default_factory=dict)
    terminal: str | None = None
    master: int | None = None
    pid: int | None = None
    begin: Callable[[], None] | None = None
    ended: bool = False


class Processes:
    """Those of one client. The door's questions come on the transport's thread."""

    def __init__(self, loop: Loop, connection: Connection, login: Login) -> None:
        self._loop = loop
        self._connection = connection
        self._login = login
        self._rights = login.rights
        self._agent: _Agent | None = None
        # Protected by _lock.
        self._lock = threading.Lock()
        self._sessions: dict[int, _Session] = {}
        self._closed = False

    @property
    def offered(self) -> bool:
        """Whether the client may have a session channel at all."""
        rights = self._rights
        return self._login.key.may_have_session and (
            rights.exec or rights.shell or rights.sftp
        )

    @property
    def has_room(self) -> bool:
        """Whether there may be one more of them."""
        with self._lock:
            for number, session in list(self._sessions.items()):
                if session.pid is None and session.channel.closed:
                    self._forget(number)
            return len(self._sessions) < SESSIONS_MAX

    def adopt(self, channel: paramiko.Channel | None) -> None:
        """Keep a channel, on which something may be asked for, alive."""
        if channel is not None:
            with self._lock:
                self._sessions[channel.get_id()] = _Session(channel)

    def _forget(self, number: int) -> None:
        session = self._sessions.pop(number, None)
        if session is not None and session.master is not None:
            os.close(session.master)

    def set_environment(
        self, channel: paramiko.Channel, name: bytes, value: bytes
    ) -> bool:
        """Take a variable of the client's, if it is about languages."""
        key, text = name.decode("ascii", "replace"), value.decode("utf-8", "replace")
        if not key.startswith(ENVIRONMENT_TAKEN) or "=" in key or "\0" in key + text:
            return False
        session = self._session(channel)
        if session is None:
            return False
        if len(value) + sum(map(len, session.environment)) > ENVIRONMENT_BYTES_MAX:
            return False
        session.environment[key] = text
        return True

    def open_terminal(
        self, channel: paramiko.Channel, term: bytes, columns: int, rows: int
    ) -> bool:
        """Make a terminal for the process to come."""
        session = self._session(channel)
        if not self._login.key.may_have_pty or b"\0" in term:
            return False
        if session is None or session.master is not None or session.pid is not None:
            return False
        master, slave = os.openpty()
        session.master = master
        session.terminal = os.ttyname(slave)
        session.environment["TERM"] = term.decode("ascii", "replace")[:64]
        # Kept until the process has its own: else the terminal would hang up first.
        os.close(slave)
        _set_size(master, columns, rows)
        return True

    def resize(self, channel: paramiko.Channel, columns: int, rows: int) -> bool:
        """The client's window has another size now."""
        with self._lock:
            session = self._sessions.get(channel.get_id())
            if session is None or session.master is None:
                return False
            _set_size(session.master, columns, rows)
        return True

    def forward_agent(self) -> bool:
        """Let the client's agent be asked from here."""
        if not (self._rights.agent_forwarding and self._login.key.may_forward_agent):
            return False
        if self._agent is None:
            self._agent = _Agent(self._loop, self._connection)
        return True

    def run_command(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Run a command line by the user's shell."""
        if not self._rights.exec or b"\0" in command:
            return False
        return self._start(channel, _shell(), "-c", os.fsdecode(command))

    def run_shell(self, channel: paramiko.Channel) -> bool:
        """Run the user's shell as a login does."""
        return self._rights.shell and self._start(channel, _shell(), "-l")

    def run_sftp(self, channel: paramiko.Channel) -> bool:
        """Run OpenSSH's server for SFTP."""
        server = find_sftp_server()
        if not self._rights.sftp or server is None:
            return False
        return self._start(channel, server)

    def close(self) -> None:
        """The client is gone: tell its processes. Any thread; once."""
        with self._lock:
            self._closed = True
            for number, session in list(self._sessions.items()):
                if session.pid is None:
                    self._forget(number)
            sessions = list(self._sessions.values())
        for session in sessions:
            self._hang_up(session)
        if self._agent is not None:
            self._agent.close()

    def _session(self, channel: paramiko.Channel) -> _Session | None:
        """Return the session; None: its process has ended, and this came too late."""
        with self._lock:
            return self._sessions.get(channel.get_id())

    # Processes.

    def _start(self, channel: paramiko.Channel, *command: str) -> bool:
        session = self._session(channel)
        if session is None or session.pid is not None:
            return False
        environment = _environment() | session.environment
        if self._agent is not None:
            environment["SSH_AUTH_SOCK"] = self._agent.path
        argv = ["/bin/sh", "-c", _AT_HOME, *command]
        try:
            pipes = _spawn(session, argv, environment)
        except OSError as error:
            log.error("cannot start a process: error=%s", error.strerror)
            return False
        log.info("started: user=%r pid=%d", self._login.user, session.pid)
        # Not before the answer to the request has gone: it may end at once.
        session.begin = partial(self._begin, session, *pipes)
        return True

    def answered(self, channel: object) -> None:
        """A request on a channel was answered: what it has started may speak now."""
        if not isinstance(channel, paramiko.Channel):
            return
        session = self._session(channel)
        if session is not None and session.begin is not None:
            begin, session.begin = session.begin, None
            begin()

    def _begin(
        self, session: _Session, stdin: int, stdout: int, stderr: int | None
    ) -> None:
        channel = session.channel
        _thread("input", partial(self._feed, session, stdin))
        carriers = [_thread("output", partial(_carry, stdout, channel.sendall))]
        if stderr is not None:
            carriers.append(
                _thread("errors", partial(_carry, stderr, channel.sendall_stderr))
            )
        _thread("end", partial(self._see_end, session, carriers))
        with self._lock:
            closed = self._closed
        if closed:
            self._hang_up(session)

    def _see_end(self, session: _Session, carriers: list[threading.Thread]) -> None:
        """Wait for a process and its output; tell the client how it ended."""
        assert session.pid is not None
        # Until it is reaped, its number is no other process's.
        os.waitid(os.P_PID, session.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            session.ended = True
        _, status = os.waitpid(session.pid, 0)
        for thread in carriers:
            thread.join()
        code = os.waitstatus_to_exitcode(status)
        log.info("ended: user=%r pid=%d status=%d", self._login.user, session.pid, code)
        with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
            # One that a signal ended is told as shells tell it.
            session.channel.send_exit_status(code if code >= 0 else 128 - code)
        session.channel.close()
        with self._lock:
            self._forget(session.channel.get_id())

    def _feed(self, session: _Session, stdin: int) -> None:
        """Carry what the client sends, until it says that nothing follows.

        When it closes the channel, the process is told.
        """
        channel: Any = session.channel
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv(CHUNK_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(stdin, view) :]
            if session.terminal is not None:
                os.write(stdin, END_OF_TERMINAL)
        os.close(stdin)
        # Set when the channel is closed, by whichever side.
        channel.status_event.wait()
        self._hang_up(session)

    def _hang_up(self, session: _Session) -> None:
        with self._lock:
            if session.pid is None or session.ended:
                return
            # Under the lock, and not ended: the number is still this process's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(session.pid, signal.SIGHUP)


def _spawn(
    session: _Session, argv: list[str], environment: dict[str, str]
) -> tuple[int, int, int | None]:
    """Start a process; return what to write to it, and its output and errors."""
    actions: list[Any]
    if session.master is not None:
        assert session.terminal is not None
        # The first terminal that a session opens becomes its own.
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, session.terminal, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ]
        session.pid = _run(argv, environment, actions)
        return os.dup(session.master), os.dup(session.master), None
    ends = [os.pipe() for _ in range(3)]
    theirs = (ends[0][0], ends[1][1], ends[2][1])
    ours = (ends[0][1], ends[1][0], ends[2][0])
    try:
        # They are above 2, since this process has 0, 1 and 2.
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(theirs)]
        session.pid = _run(argv, environment, actions)
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return ours


def _run(argv: list[str], environment: dict[str, str], actions: list[Any]) -> int:
    # What the gateway ignores, Python or its starter having said so, is not ignored.
    return os.posix_spawn(
        argv[0],
        argv,
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _carry(source: int, send: Callable[[bytes], object]) -> None:
    """Carry what a process says; a terminal whose process is gone says EIO."""
    gone = False
    with contextlib.suppress(OSError):
        while data := os.read(source, CHUNK_BYTES):
            # Read on when nobody listens: the process shall not wait for ever.
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                if not gone:
                    gone = True
                    send(data)
                    gone = False
    os.close(source)


def _thread(name: str, function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, name=f"rtunnel-{name}", daemon=True)
    thread.start()
    return thread


def _shell() -> str:
    return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"


def _environment() -> dict[str, str]:
    """Return what a login has; nothing of the gateway's own."""
    user = pwd.getpwuid(os.getuid())
    return {
        "HOME": os.environ.get("HOME", user.pw_dir),
        "LOGNAME": user.pw_name,
        "PATH": os.environ.get("PATH", os.defpath),
        "SHELL": user.pw_shell or "/bin/sh",
        "USER": user.pw_name,
    }


def _set_size(terminal: int, columns: int, rows: int) -> None:
    size = struct.pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


class _Agent:
    """A socket here that leads to the client's agent."""

    def __init__(self, loop: Loop, connection: Connection) -> None:
        self._loop = loop
        self._connection = connection
        # Only its owner gets into it (mode 0700).
        self._folder = tempfile.mkdtemp(prefix="rtunnel-agent-")
        self.path = os.path.join(self._folder, "agent.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.path)
        self._socket.listen()
        self._socket.setblocking(False)
        loop.call(partial(loop.serve, self._socket, self._welcome))

    def _welcome(self, sock: socket.socket, address: object) -> None:
        with contextlib.suppress(RTunnelError):
            self._connection.open_later(AGENT_CHANNEL, b"", sock, lambda opened: None)

    def close(self) -> None:
        if not self._loop.call(self._leave):
            self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _leave(self) -> None:
        self._loop.leave(self._socket)
        self._socket.close()
