"""What the exit status of `x2go-session` says; scripts decide by it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from rtunnel import errors as tunnel
from x2go_session import errors
from x2go_session.broker.server.errors import LoginRefused


class ExitStatus(IntEnum):
    """How a command ended. Those up to 8 are as `rtunnel` has them."""

    ENDED = 0
    UNEXPECTED = 1
    USAGE = 2
    CONNECTION_FAILED = 3
    AUTHENTICATION = 4
    HOST_KEY = 5
    CONNECTION_LOST = 7
    CONFIGURATION = 8
    SERVER = 10
    NOT_INSTALLED = 11
    DENIED = 12
    NO_SESSION = 13
    CLIENT = 14


MEANING: Final = {
    ExitStatus.ENDED: "done; the session is over or suspended",
    ExitStatus.UNEXPECTED: "an error that should not be; -vv shows where",
    ExitStatus.USAGE: "the command line is wrong",
    ExitStatus.CONNECTION_FAILED: "the server cannot be reached",
    ExitStatus.AUTHENTICATION: "the server accepted no key and no password",
    ExitStatus.HOST_KEY: "the server's host key is unknown, changed or revoked",
    ExitStatus.CONNECTION_LOST: "the connection stood, and was lost",
    ExitStatus.CONFIGURATION: "an option or a configuration file is wrong",
    ExitStatus.SERVER: "the server could not do it; its own words are printed",
    ExitStatus.NOT_INSTALLED: "the server lacks x2goserver, or the program to run",
    ExitStatus.DENIED: "the session limit is reached, or access was denied",
    ExitStatus.NO_SESSION: "there is no such session",
    ExitStatus.CLIENT: "this machine lacks what shows the session: nxproxy, DISPLAY",
}

# The first class that fits decides, so a class stands before those it derives from.
_STATUS_OF: Final[tuple[tuple[type[Exception], ExitStatus], ...]] = (
    (tunnel.InvalidAddress, ExitStatus.USAGE),
    (tunnel.ConfigError, ExitStatus.CONFIGURATION),
    (tunnel.BackendUnavailable, ExitStatus.CONFIGURATION),
    (tunnel.AuthenticationFailed, ExitStatus.AUTHENTICATION),
    (tunnel.HostKeyError, ExitStatus.HOST_KEY),
    (tunnel.ConnectError, ExitStatus.CONNECTION_FAILED),
    (tunnel.RTunnelError, ExitStatus.CONNECTION_LOST),
    (errors.NotInstalled, ExitStatus.NOT_INSTALLED),
    (errors.NoSuchCommand, ExitStatus.NOT_INSTALLED),
    (errors.SessionLimitReached, ExitStatus.DENIED),
    (errors.AccessDenied, ExitStatus.DENIED),
    (LoginRefused, ExitStatus.DENIED),
    (errors.NoSuchSession, ExitStatus.NO_SESSION),
    (errors.GraphicsError, ExitStatus.CLIENT),
    (errors.BrokerDenied, ExitStatus.AUTHENTICATION),
    (errors.BrokerUnreachable, ExitStatus.CONNECTION_FAILED),
    (errors.X2GoError, ExitStatus.SERVER),
)


def status_of(error: Exception) -> ExitStatus:
    """Return the exit status for an error that ended the command."""
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return status
    return ExitStatus.UNEXPECTED


def describe() -> str:
    """Return the table of all exit statuses, for `--help`."""
    rows = [f"  {status.value:2}  {MEANING[status]}" for status in ExitStatus]
    return "\n".join(["Exit status:", *rows])
