"""Every error that the session layer raises, with the server's own words.

What the tunnel raises (`rtunnel.errors`) comes through as it is.
"""

from __future__ import annotations


class X2GoError(Exception):
    """Base of every error of this package."""


class ControlError(X2GoError):
    """A command of the server failed, or answered what cannot be understood."""


class NotInstalled(ControlError):
    """The server has no x2goserver, or not that part of it."""


class SessionLimitReached(ControlError):
    """The server allows this user no more sessions."""


class AccessDenied(ControlError):
    """The owner of a desktop refused to share it, or could not be asked."""


class NoSuchCommand(ControlError):
    """The program that the session is to run is not installed on the server."""


class NoSuchSession(ControlError):
    """There is no such session on the server, or not any more."""


class GraphicsError(X2GoError):
    """The session's windows cannot be shown here: nxproxy, display or tunnel failed."""


class SessionStateError(X2GoError):
    """What was asked for is not possible in the state that the session is in."""


class ServiceError(X2GoError):
    """A service of the session (sound, sharing, printing ...) cannot run."""


class NotSupported(X2GoError):
    """X2Go knows what was asked for, and this package does not do it."""


class ConfigFileError(X2GoError):
    """A file of settings makes no sense, or cannot be read or written.

    `path` is the file; `line`, `section` and `key` say where in it, as far as that can
    be said (0 and "" otherwise). The file is left as it is.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str,
        line: int = 0,
        section: str = "",
        key: str = "",
    ) -> None:
        place = f"{path}:{line}" if line else path
        if section:
            place += f", [{section}]"
        if key:
            place += f", {key}"
        super().__init__(f"{place}: {problem}")
        self.problem = problem
        self.path = path
        self.line = line
        self.section = section
        self.key = key


class ProfileError(X2GoError, ValueError):
    """A profile cannot have this value or name, or is not there to be changed."""


class NoSuchProfile(ProfileError):
    """There is no profile with this id or name."""


class BrokerError(X2GoError):
    """Something about a session broker; each kind has a class of its own."""


class BrokerUnreachable(BrokerError):
    """The broker cannot be reached, is not the one it should be, or did not answer."""


class BrokerDenied(BrokerError):
    """The broker does not let this user in, or not with this password or authid."""


class BrokerAnswerError(BrokerError):
    """The broker answered what cannot be understood, or what no broker should."""


class NoServerAvailable(BrokerError):
    """The broker has no server for this profile, or none that is up."""


class NotConnected(X2GoError):
    """What was asked for needs a connection to the server, and there is none."""


class NotRegistered(X2GoError):
    """No session is registered under this uuid."""
