"""Sound: programs of the session play in the sound server of this machine.

The server listens on the session's sound port for us, and takes whoever connects to the
sound server here. A cookie says to that one that the visitor may play.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Final

import rtunnel
from rtunnel.errors import RTunnelError
from x2go_session.errors import ServiceError, X2GoError
from x2go_session.events import ServiceFailed
from x2go_session.services.ports import LOOPBACK, listen
from x2go_session.session import Session

log = logging.getLogger("x2go_session.services.sound")

PULSE_PORT: Final = 4713
ESD_PORT: Final = 16001
CONNECT_TIMEOUT_S: Final = 5.0
# Of PulseAudio (256 bytes) and of esd (16): whatever is longer is no cookie.
COOKIE_LIMIT_BYTES: Final = 4096


class SoundSystem(Enum):
    """The sound system of a session, by the word that x2goruncommand has for it."""

    PULSE = "pulse"  # or what speaks its protocol, as PipeWire does
    ESD = "esd"
    NONE = "none"


class Sound:
    """Takes the sound of a session to the sound server of this machine.

    `server` is where that one listens, as `"host:port"` or `"unix:/path"`. Without it
    that is the first that answers of: what PULSE_SERVER names, the usual port on this
    machine, the socket of the user's PulseAudio. `cookie` is the file with the cookie;
    without it, where PulseAudio and esd keep it.

    A sound server that does not answer is a `ServiceFailed` event. The port stands
    nevertheless, so that there is sound as soon as it answers.
    """

    name: Final = "sound"

    def __init__(
        self,
        system: SoundSystem = SoundSystem.PULSE,
        server: str | None = None,
        cookie: Path | None = None,
    ) -> None:
        self.system = system
        self._server = server
        self._cookie = cookie
        self._session: Session | None = None
        self._listener: rtunnel.Listener | None = None
        self._files: list[str] = []

    @property
    def port(self) -> int:
        """Its port on the server while it runs, else 0."""
        return self._listener.port if self._listener else 0

    @property
    def listener(self) -> rtunnel.Listener | None:
        """The handle of the port while it runs: who visits, and how much they sent."""
        return self._listener

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells programs of the session where to play."""
        if self._session is None or self.system is not SoundSystem.PULSE:
            return {}
        return {"PULSE_CLIENTCONFIG": _client_conf_path(self._session)}

    def start(self, session: Session) -> None:
        """Open the port, and put cookie and configuration on the server. Blocks.

        Where the session's port is taken, the session gets another one.

        Raises `ServiceError` when there is no cookie, `ControlError` when the files
        cannot be written over there, and what `Tunnel.listen` raises.
        """
        if self.system is SoundSystem.NONE:
            return
        cookie = read_cookie(self.system, self._cookie)
        server, silence = find_server(self.system, self._server)
        self._session = session
        try:
            self._listener = listen(
                session.tunnel,
                session.ports.sound,
                to=server,
                name=f"sound of {session.name}",
                priority="interactive",
            )
            # The command is told this one.
            session.ports = replace(session.ports, sound=self._listener.port)
            if self.system is SoundSystem.PULSE:
                self._put(_cookie_path(session), cookie)
                conf = client_conf(session, over_socket=server.startswith("unix:"))
                self._put(_client_conf_path(session), conf.encode())
            else:
                self._put(f"{session.control.home}/.esd_auth", cookie)
        except BaseException:
            self.stop()
            raise
        if silence is not None:
            log.warning("no sound server: server=%s error=%s", server, silence)
            session.events.emit(
                ServiceFailed(
                    session=session.name,
                    service=self.name,
                    reason=f"no sound until the sound server runs: {silence}",
                )
            )

    def stop(self) -> None:
        """Close the port, and remove the cookie from the server. Blocks."""
        session, listener, files = self._session, self._listener, self._files
        self._session, self._listener, self._files = None, None, []
        if listener is not None:
            with contextlib.suppress(RTunnelError):
                listener.close()
        if session is not None and files:
            # The next start writes them again; nobody needs them meanwhile.
            with contextlib.suppress(X2GoError, RTunnelError, OSError):
                session.control.run(f"rm -f {' '.join(map(shlex.quote, files))}")

    def _put(self, path: str, content: bytes) -> None:
        assert self._session is not None
        self._files.append(path)
        self._session.control.put_file(path, content)


def client_conf(session: Session, *, over_socket: bool = False) -> str:
    """Return the client.conf(5) for programs of the session.

    A PulseAudio that is reached over its socket takes our end for a program of this
    machine, and would offer it shared memory; programs of the session cannot map that.
    """
    lines = [
        f"default-server={LOOPBACK}:{session.ports.sound}",
        f"cookie-file={_cookie_path(session)}",
    ]
    if over_socket:
        lines.append("enable-shm=no")
    return "".join(f"{line}\n" for line in lines)


def cookie_paths(system: SoundSystem) -> list[Path]:
    """Return where a sound system keeps its cookie, the best place first."""
    home = Path.home()
    if system is SoundSystem.ESD:
        return [home / ".esd_auth"]
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    named = os.environ.get("PULSE_COOKIE")
    found = [Path(named)] if named else []
    return [*found, home / ".pulse-cookie", config / "pulse" / "cookie"]


def read_cookie(system: SoundSystem, path: Path | None = None) -> bytes:
    """Return the cookie of a sound system. Raises `ServiceError` if there is none."""
    candidates = [path] if path else cookie_paths(system)
    for candidate in candidates:
        try:
            with candidate.open("rb") as file:
                cookie = file.read(COOKIE_LIMIT_BYTES + 1)
        except OSError as error:
            log.debug("no cookie: file=%s error=%s", candidate, error.strerror)
            continue
        if 0 < len(cookie) <= COOKIE_LIMIT_BYTES:
            return cookie
    where = " or ".join(str(candidate) for candidate in candidates)
    program = "PulseAudio" if system is SoundSystem.PULSE else "esd"
    raise ServiceError(
        f"no sound: there is no cookie of {program} at {where}; start {program} once "
        "on this machine, or name the file"
    )


def find_server(
    system: SoundSystem, server: str | None = None
) -> tuple[str, OSError | None]:
    """Return the sound server of this machine, and why it does not answer, if so.

    Blocks for 5 s at most, for each place that is tried.
    """
    if server is not None:
        candidates = [server]
    elif system is SoundSystem.ESD:
        candidates = [f"{LOOPBACK}:{ESD_PORT}"]
    else:
        candidates = [
            *_named_pulse_servers(),
            f"{LOOPBACK}:{PULSE_PORT}",
            *_pulse_sockets(),
        ]
    errors = []
    for candidate in candidates:
        try:
            _connect(candidate)
        except OSError as error:
            errors.append(error)
        else:
            return candidate, None
    return candidates[0], errors[0]


def _connect(server: str) -> None:
    """Connect to a server and leave at once. Raises OSError, with the place in it."""
    kind, _, rest = server.partition(":")
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(rest)
        else:
            host, _, port = server.rpartition(":")
            address = (host.strip("[]"), int(port))
            socket.create_connection(address, CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot connect to {server}: {reason}") from None


def _named_pulse_servers() -> list[str]:
    """Return what PULSE_SERVER names: `[{MACHINE}][tcp[46]:|unix:]PLACE ...`."""
    found = []
    for word in os.environ.get("PULSE_SERVER", "").split():
        address = word.rpartition("}")[2]
        for prefix in ("tcp:", "tcp4:", "tcp6:"):
            address = address.removeprefix(prefix)
        if address.startswith(("unix:", "/")):
            found.append(f"unix:{address.removeprefix('unix:')}")
        elif address.rpartition("]")[2].count(":") == 1:
            found.append(address)
        else:
            found.append(f"{address}:{PULSE_PORT}")
    return found


def _pulse_sockets() -> list[str]:
    runtime = os.environ.get("PULSE_RUNTIME_PATH")
    if not runtime:
        runtime = os.path.join(
            os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "pulse"
        )
    path = os.path.join(runtime, "native")
    return [f"unix:{path}"] if os.path.exists(path) else []


def _client_conf_path(session: Session) -> str:
    return f"{session.remote_folder}/.pulse-client.conf"


def _cookie_path(session: Session) -> str:
    return f"{session.remote_folder}/.pulse-cookie"
