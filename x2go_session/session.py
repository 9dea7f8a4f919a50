"""One X2Go session as its parts see it: names, ports, folders, and the way to it."""

from __future__ import annotations

import getpass
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rtunnel
    from x2go_session.control import Control
    from x2go_session.events import Events


class SessionType(Enum):
    """What kind of session it is, by the letter that the server has for it."""

    DESKTOP = "D"
    ROOTLESS = "R"  # one application, its windows among those of this display
    PUBLISHED = "P"  # applications started one by one
    SHADOW = "S"  # somebody's running desktop


@dataclass(frozen=True, slots=True)
class Ports:
    """The session's ports on the server's loopback. A resume may bring others.

    graphics: where the agent listens; sound and sharing: where *we* have the server
    listen, for PulseAudio and for the SFTP server of shared folders.
    """

    graphics: int
    sound: int
    sharing: int


@dataclass
class Session:
    """What a service needs to know of the session that it serves.

    `ports`, `tunnel` and `control` are others after a resume or a reconnect: services
    are stopped before and started after it, and read them when they start.
    """

    name: str
    type: SessionType
    command: str
    display: int
    cookie: str = field(repr=False)
    agent_pid: int
    ports: Ports
    control: Control
    events: Events
    # On this side, kept as long as the session: S-<name> below the sessions' root.
    local_folder: Path
    # On the server: <home>/.x2go/C-<name>.
    remote_folder: str
    # What the server is told to call us; the SFTP server of shared folders checks it.
    client_user: str = field(default_factory=getpass.getuser)

    @property
    def tunnel(self) -> rtunnel.Tunnel:
        """The tunnel that carries the session, for `listen`."""
        return self.control.tunnel

    def use_ports(self, graphics: int, sound: int, sharing: int) -> None:
        """Take the ports that a resume gave."""
        self.ports = replace(
            self.ports, graphics=graphics, sound=sound, sharing=sharing
        )
