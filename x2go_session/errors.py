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
