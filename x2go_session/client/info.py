"""What a server lists, in python-x2go's words."""

from __future__ import annotations

from typing import Any

from x2go_session.replies import SessionInfo
from x2go_session.session import SessionType

_TIME = "%Y-%m-%dT%H:%M:%S"


class X2GoServerSessionInfo:
    """A session that a server lists."""

    def __init__(self, info: SessionInfo) -> None:
        self.name = info.name
        self.agent_pid = info.agent_pid
        self.display = info.display
        self.hostname = info.server
        self.status = info.status
        self.date_created = info.started.strftime(_TIME) if info.started else ""
        self.date_suspended = info.changed.strftime(_TIME) if info.changed else ""
        self.cookie = info.cookie
        self.username = info.user
        self.graphics_port = info.ports.graphics
        self.snd_port = info.ports.sound
        self.sshfs_port = info.ports.sharing
        self._type = info.type

    def __repr__(self) -> str:
        return f"<X2GoServerSessionInfo {self.name} {self.status}>"

    def __str__(self) -> str:
        return self.name

    def is_running(self) -> bool:
        """Whether it runs."""
        return self.status == "R"

    def is_suspended(self) -> bool:
        """Whether it waits to be resumed."""
        return self.status == "S"

    def get_session_type(self) -> str:
        """Return the letter of its type: D, R, S or P."""
        return self._type.value

    def is_published_applications_provider(self) -> bool:
        """Whether applications are started in it one by one."""
        return self._type is SessionType.PUBLISHED


def infos(listed: list[SessionInfo]) -> dict[str, Any]:
    """Return sessions by their names."""
    return {info.name: X2GoServerSessionInfo(info) for info in listed}
