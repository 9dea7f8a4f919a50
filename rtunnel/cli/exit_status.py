"""What the exit status of `rtunnel` says; scripts and services decide by it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from rtunnel import errors


class ExitStatus(IntEnum):
    """How a command ended. The numbers are an interface: they do not change."""

    ENDED = 0
    UNEXPECTED = 1
    USAGE = 2
    CONNECTION_FAILED = 3
    AUTHENTICATION = 4
    HOST_KEY = 5
    FORWARD_REFUSED = 6
    CONNECTION_LOST = 7
    CONFIGURATION = 8
    BACKEND = 9


MEANING: Final = {
    ExitStatus.ENDED: "done, or ended by SIGINT or SIGTERM",
    ExitStatus.UNEXPECTED: "an error that should not be; -vv shows where",
    ExitStatus.USAGE: "the command line is wrong",
    ExitStatus.CONNECTION_FAILED: "the server cannot be reached",
    ExitStatus.AUTHENTICATION: "the server accepted no key and no password",
    ExitStatus.HOST_KEY: "the server's host key is unknown, changed or revoked",
    ExitStatus.FORWARD_REFUSED: "the server refused a forward; none was kept",
    ExitStatus.CONNECTION_LOST: "the connection stood, and was lost",
    ExitStatus.CONFIGURATION: "an option or a configuration file is wrong",
    ExitStatus.BACKEND: "the backend that was asked for cannot run here",
}

# The first class that fits decides, so a class stands before those it derives from.
_STATUS_OF: Final[tuple[tuple[type[errors.RTunnelError], ExitStatus], ...]] = (
    (errors.InvalidAddress, ExitStatus.USAGE),
    (errors.ConfigError, ExitStatus.CONFIGURATION),
    (errors.BackendUnavailable, ExitStatus.BACKEND),
    (errors.AuthenticationFailed, ExitStatus.AUTHENTICATION),
    (errors.HostKeyError, ExitStatus.HOST_KEY),
    (errors.ConnectError, ExitStatus.CONNECTION_FAILED),
    (errors.ForwardRefused, ExitStatus.FORWARD_REFUSED),
    (errors.RequestTimeout, ExitStatus.CONNECTION_LOST),
    (errors.ConnectionLost, ExitStatus.CONNECTION_LOST),
)


def status_of(error: errors.RTunnelError) -> ExitStatus:
    """Return the exit status for an error that ended the command."""
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return status
    return ExitStatus.UNEXPECTED


def describe() -> str:
    """Return the table of all exit statuses, for `--help`."""
    rows = [f"  {status.value}  {MEANING[status]}" for status in ExitStatus]
    return "\n".join(["Exit status:", *rows])
