"""What paramiko asks on behalf of a client: only keys open, and most is refused."""

from __future__ import annotations

from typing import Final, Protocol

import paramiko
from paramiko.common import OPEN_SUCCEEDED

from rtunnel.gateway.processes import Processes

AUTH_METHODS: Final = "publickey"


class Client(Protocol):
    """Who decides."""

    @property
    def processes(self) -> Processes:
        """What the client runs here, once it has logged in."""

    def admit(self, user: str) -> int:
        """Say whether the key that was just offered may log in."""


class Door(paramiko.ServerInterface):
    """The answers for one client."""

    def __init__(self, session: Client) -> None:
        self._session = session

    def get_allowed_auths(self, username: str) -> str:
        """Name the methods that may succeed."""
        return AUTH_METHODS

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Look at the key that was offered."""
        return self._session.admit(username)

    # Only for session channels, where they are switched on.

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Take every session channel that comes this far."""
        return OPEN_SUCCEEDED

    def check_channel_env_request(
        self, channel: paramiko.Channel, name: bytes, value: bytes
    ) -> bool:
        """Take a variable."""
        return self._session.processes.set_environment(channel, name, value)

    def check_channel_pty_request(
        self,
        channel: paramiko.Channel,
        term: bytes,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
        modes: bytes,
    ) -> bool:
        """Make a terminal."""
        return self._session.processes.open_terminal(channel, term, width, height)

    def check_channel_window_change_request(
        self,
        channel: paramiko.Channel,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
    ) -> bool:
        """Change the size of the terminal."""
        return self._session.processes.resize(channel, width, height)

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        """Let the agent be asked."""
        return self._session.processes.forward_agent()

    def check_channel_exec_request(
        self, channel: paramiko.Channel, command: bytes
    ) -> bool:
        """Run a command."""
        return self._session.processes.run_command(channel, command)

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        """Run a shell."""
        return self._session.processes.run_shell(channel)

    def check_channel_subsystem_request(
        self, channel: paramiko.Channel, name: str
    ) -> bool:
        """Run the server for SFTP."""
        return name == "sftp" and self._session.processes.run_sftp(channel)
