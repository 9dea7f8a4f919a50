"""What the server's commands answer, as types. Nothing of it is trusted.

Names end up in file names and command lines, ports in listeners: what does not look
as it must is left out of a list, or is a `ControlError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from x2go_session.errors import ControlError, NoSuchSession
from x2go_session.session import Ports, SessionType

# What the server itself lets into a name; no slash among it.
SESSION_NAME: Final = re.compile(
    r"(?P<user>[A-Za-z0-9._@-]+)-\d{2,4}-\d{9,12}_st(?P<type>[DRSK])"
    r"(?P<command>[A-Za-z0-9._@-]*?)_dp\d{1,2}(_[A-Za-z0-9._-]*)?"
)
_COOKIE: Final = re.compile(r"[0-9a-f]{32}")
# No process or port has more digits, and int() takes some thousands of them only.
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
_FEATURE: Final = re.compile(r"X2GO[A-Z0-9_]+")
FEWEST_FIELDS: Final = 10
HIGHEST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A line of x2golistsessions. Numbers that are not there yet are 0."""

    agent_pid: int
    name: str
    display: int
    server: str
    status: str
    started: datetime | None
    cookie: str = field(repr=False)
    client: str
    ports: Ports
    changed: datetime | None
    user: str
    age_s: int

    @property
    def is_running(self) -> bool:
        """Whether it runs, or is listed as if it did."""
        return self.status == "R"

    @property
    def is_suspended(self) -> bool:
        """Whether it waits to be resumed."""
        return self.status == "S"

    @property
    def type(self) -> SessionType:
        """What kind of session it is, as its name tells."""
        return type_of(self.name)

    @property
    def command(self) -> str:
        """The command in its name."""
        found = SESSION_NAME.fullmatch(self.name)
        return found["command"] if found else ""


@dataclass(frozen=True, slots=True)
class StartedAgent:
    """What x2gostartagent answers."""

    display: int
    cookie: str = field(repr=False)
    agent_pid: int
    name: str
    ports: Ports


@dataclass(frozen=True, slots=True)
class Desktop:
    """A desktop that can be shared: a line of x2golistdesktops."""

    user: str
    display: str

    def __str__(self) -> str:
        return f"{self.user}@:{self.display}"


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of a client that is mounted on the server."""

    client: str
    mount_point: str


def type_of(name: str) -> SessionType:
    """Return the type that a session's name tells."""
    found = SESSION_NAME.fullmatch(name)
    if found is None:
        raise ControlError(f"not the name of a session: {name!r}")
    if found["type"] == "R" and found["command"] == "PUBLISHED":
        return SessionType.PUBLISHED
    return SessionType("D" if found["type"] == "K" else found["type"])


def sessions(lines: Iterable[str]) -> list[SessionInfo]:
    """Read the lines of x2golistsessions and x2golistshadowsessions.

    Lines of something else are left out.
    """
    found = (_session(line) for line in lines)
    return [info for info in found if info is not None]


def _session(line: str) -> SessionInfo | None:
    fields = line.rstrip("\r").split("|")
    # Sessions without telekinesis have 14 fields; before their ports are known, less.
    if len(fields) < FEWEST_FIELDS or not SESSION_NAME.fullmatch(fields[1]):
        return None
    fields += [""] * (14 - len(fields))
    try:
        return SessionInfo(
            agent_pid=int(fields[0] or 0),
            name=fields[1],
            display=int(fields[2] or 0),
            server=fields[3],
            status=fields[4],
            started=_time(fields[5]),
            cookie=fields[6],
            client=fields[7],
            ports=Ports(_port(fields[8]), _port(fields[9]), _port(fields[13])),
            changed=_time(fields[10]),
            user=fields[11],
            age_s=int(fields[12] or 0),
        )
    except ValueError:
        return None


def started_agent(lines: list[str]) -> StartedAgent:
    """Read what x2gostartagent answers: seven lines, nine with telekinesis."""
    said = [line.strip() for line in lines if line.strip()]
    for at in range(len(said) - 6):
        display, cookie, pid, name, *ports = said[at : at + 7]
        if (
            _COOKIE.fullmatch(cookie)
            and SESSION_NAME.fullmatch(name)
            and all(_NUMBER.fullmatch(text) for text in (display, pid, *ports))
            and all(int(text) <= HIGHEST_PORT for text in ports)
        ):
            return StartedAgent(
                int(display), cookie, int(pid), name, Ports(*map(_port, ports))
            )
    raise ControlError(f"x2gostartagent answered something else: {' '.join(said)!r}")


def resumed_ports(lines: Iterable[str], name: str) -> Ports:
    """Read the ports that x2goresume-session answers with."""
    values = dict(line.strip().partition("=")[::2] for line in lines)
    try:
        return Ports(
            _port(values["gr_port"]),
            _port(values["sound_port"]),
            _port(values["fs_port"]),
        )
    except (KeyError, ValueError) as error:
        raise NoSuchSession(f"the server did not resume {name}: {values}") from error


def desktops(lines: Iterable[str]) -> list[Desktop]:
    """Read the lines of x2golistdesktops."""
    found = (
        re.fullmatch(r"([A-Za-z0-9_.-]+)@:(\d{1,4}(?:\.\d)?)", line.strip())
        for line in lines
    )
    return [Desktop(match[1], match[2]) for match in found if match]


def mounts(lines: Iterable[str]) -> list[Mount]:
    """Read the lines of x2golistmounts."""
    found = (line.partition("|") for line in lines)
    return [Mount(client, path) for client, bar, path in found if bar]


def features(lines: Iterable[str]) -> frozenset[str]:
    """Read the lines of x2gofeaturelist."""
    return frozenset(line.strip() for line in lines if _FEATURE.fullmatch(line.strip()))


def versions(lines: Iterable[str]) -> dict[str, str]:
    """Read the lines of x2goversion, which says `component: version`."""
    found = (line.partition(":") for line in lines)
    return {name.strip(): text.strip() for name, colon, text in found if colon}


def _port(text: str) -> int:
    number = int(text or 0)
    if not -1 <= number <= HIGHEST_PORT:
        raise ValueError(f"not a port: {text}")
    return max(number, 0)


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return None
