"""Asks X2Go servers over SSH what they do: load average, processors, sessions.

One connection to each server is kept. Servers are asked at once, and none is waited for
longer than the settings say: one that is late is dead for that request. Who asks while
another is asking gets the same answer, if that began later than the question.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import rtunnel
from rtunnel.errors import RTunnelError
from x2go_session import replies
from x2go_session.broker.server.balance import Load
from x2go_session.broker.server.errors import ServerError
from x2go_session.broker.server.profiles_file import Host
from x2go_session.broker.server.settings import ServerSettings
from x2go_session.commands import words
from x2go_session.control import CommandResult, Control
from x2go_session.errors import ControlError, X2GoError
from x2go_session.replies import SessionInfo

log = logging.getLogger("x2go_session.broker")

# x2golistsessions_root, runuser and others are in sbin.
SERVER_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOST_AT_ONCE: Final = 32
PROBE_TIMEOUT_S: Final = 3.0
_LOAD: Final = re.compile(r"X2GOLOAD (?P<average>\d{1,6}\.\d+) (?P<processors>\d{1,5})")
LOAD_COMMAND: Final = (
    'read average rest </proc/loadavg && echo "X2GOLOAD $average $(nproc)"'
)
LIST_COMMAND: Final = "x2golistsessions_root"


@dataclass(frozen=True, slots=True)
class ServerSession:
    """A session, and the line it was read from: clients get that."""

    info: SessionInfo
    line: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; None and nothing if it only listens."""

    load: Load | None
    sessions: tuple[ServerSession, ...]


class Servers:
    """The X2Go servers. Any thread; calls block, for as long as the settings say."""

    def __init__(self, settings: ServerSettings | None) -> None:
        self.settings = settings
        self._workers = concurrent.futures.ThreadPoolExecutor(
            MOST_AT_ONCE, "x2go-broker-servers"
        )
        self._lock = threading.Lock()
        self._known: dict[Host, _Server] = {}

    def ask(
        self, hosts: Sequence[Host], *, probe: bool, fresh_s: float = 0.0
    ) -> dict[Host, Answer]:
        """Return what the servers that are alive said, in the order of `hosts`.

        Without `probe`, those that cannot be asked are taken to be alive. `fresh_s` is
        how old an answer may be.
        """
        if self.settings is None and not probe:
            return {host: Answer(None, ()) for host in hosts}
        asked_at = time.monotonic()
        futures = {
            host: self._workers.submit(self._server(host).answer, asked_at - fresh_s)
            for host in dict.fromkeys(hosts)
        }
        limit_s = self.settings.timeout_s if self.settings else PROBE_TIMEOUT_S
        done, _ = concurrent.futures.wait(futures.values(), limit_s)
        found = {}
        for host, future in futures.items():
            answer = future.result() if future in done else None
            if answer is not None:
                found[host] = answer
            elif not probe:
                found[host] = Answer(None, ())
            if answer is None:
                log.warning("server does not answer: server=%s", host)
        return found

    def run(self, host: Host, command: str) -> CommandResult:
        """Run a command of sh(1) as root on a server.

        Raises `ServerError` if it fails, or the server cannot be reached.
        """
        if self.settings is None:
            raise ServerError(
                "the settings do not say how servers are asked: [servers]"
            )
        try:
            return self._server(host).check(self.as_root(command))
        except (X2GoError, RTunnelError, OSError) as error:
            raise ServerError(f"{host}: {error}") from error

    def as_root(self, command: str) -> str:
        """Return the command as `user` has to call it."""
        if self.settings is not None and self.settings.sudo:
            return words("sudo", "-n", "sh", "-c", command)
        return command

    def suspend(self, host: Host, user: str, session: str) -> None:
        """Have a user's session suspended. Raises `ServerError`."""
        self.run(host, as_user(user, words("x2gosuspend-session", session)))

    def close(self) -> None:
        """Close all connections."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            known = list(self._known.values())
        for server in known:
            server.close()

    def _server(self, host: Host) -> _Server:
        with self._lock:
            if host not in self._known:
                self._known[host] = _Server(host, self.settings, self.as_root)
            return self._known[host]


class _Server:
    """One server: the connection to it, and what it said last."""

    def __init__(
        self,
        host: Host,
        settings: ServerSettings | None,
        as_root: Callable[[str], str],
    ) -> None:
        self._host = host
        self._settings = settings
        self._list = as_root(LIST_COMMAND)
        # Held while it is asked: others wait for the answer.
        self._asking = threading.Lock()
        self._asked_at = 0.0
        self._answer: Answer | None = None
        # Protects the connection.
        self._lock = threading.Lock()
        self._control: Control | None = None
        self._closed = False

    def answer(self, not_before: float) -> Answer | None:
        """Return what it says; None if it is dead."""
        with self._asking:
            if self._asked_at < not_before or not self._asked_at:
                begun = time.monotonic()
                self._answer = self._ask()
                self._asked_at = begun
            return self._answer

    def check(self, command: str) -> CommandResult:
        """Run a command; a second time if the connection was not good any more."""
        known, control = self._connected()
        try:
            return control.check(command)
        except RTunnelError:
            self._drop(control)
            if not known:
                raise
        return self._connected()[1].check(command)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._closed = True
            control = self._control
        if control is not None:
            self._drop(control)

    def _ask(self) -> Answer | None:
        if self._settings is None:
            return Answer(None, ()) if self._listens() else None
        try:
            load = self.check(LOAD_COMMAND)
            listed = self.check(self._list)
        except (X2GoError, RTunnelError, OSError) as error:
            log.info("server: server=%s error=%s", self._host, error)
            # It may have no x2goserver that can be asked, and yet be one to log in to.
            return Answer(None, ()) if isinstance(error, ControlError) else None
        return read_answer(load.stdout, listed.lines)

    def _listens(self) -> bool:
        place = (self._host.address, self._host.port)
        try:
            socket.create_connection(place, PROBE_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def _connected(self) -> tuple[bool, Control]:
        """Return the connection, and whether it was there before."""
        settings = self._settings
        assert settings is not None
        with self._lock:
            if self._closed:
                raise ServerError("the broker ends")
            if self._control is not None and self._control.is_alive:
                return True, self._control
            tunnel = rtunnel.connect(
                f"{settings.user}@{self._host}",
                identity_files=[settings.identity_file]
                if settings.identity_file
                else [],
                known_hosts=settings.known_hosts,
                config_file=settings.ssh_config,
                connect_timeout_s=settings.timeout_s,
            )
            self._control = Control(tunnel, settings.timeout_s, SERVER_PATH)
            return False, self._control

    def _drop(self, control: Control) -> None:
        with self._lock:
            if self._control is control:
                self._control = None
        with contextlib.suppress(RTunnelError, OSError):
            control.tunnel.close()


def as_user(user: str, command: str) -> str:
    """Return a command that root runs as another user."""
    return words("runuser", "-u", user, "--", "sh", "-c", command)


def read_answer(load: str, lines: Sequence[str]) -> Answer:
    """Read what a server answers. Lines that are no session are left out."""
    sessions = tuple(
        ServerSession(info, line.strip())
        for line in lines
        for info in replies.sessions([line])
        if info.is_running or info.is_suspended
    )
    found = _LOAD.search(load)
    if found is None:
        return Answer(None, sessions)
    told = Load(float(found["average"]), int(found["processors"]), len(sessions))
    return Answer(told, sessions)
