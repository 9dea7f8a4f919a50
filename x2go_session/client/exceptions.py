"""python-x2go's exceptions, by name; and what of ours each stands for.

All are `X2GoError`, and so `Exception` (python-x2go's are `BaseException`). What the
layers below raise is the cause of what a caller gets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from rtunnel.errors import (
    AuthenticationFailed,
    ChannelOpenError,
    ConnectError,
    ConnectionLost,
    ForwardRefused,
    HostKeyError,
    RequestTimeout,
    RTunnelError,
)
from x2go_session import errors

Args = ParamSpec("Args")
Result = TypeVar("Result")


class X2GoException(errors.X2GoError):
    """Base of python-x2go's exceptions."""


class X2GoClientException(X2GoException):
    """What was asked of the client makes no sense."""


class X2GoClientPrintingException(X2GoException):
    """The `printing` file makes no sense."""


class X2GoClientSettingsException(X2GoException):
    """The `settings` file makes no sense."""


class X2GoSessionException(X2GoException):
    """The session cannot do what was asked for."""


class X2GoControlSessionException(X2GoException):
    """The server cannot be reached, or a command failed there."""


class X2GoSFTPClientException(X2GoControlSessionException):
    """The server has no SFTP for this user."""


class X2GoRemoteHomeException(X2GoControlSessionException):
    """The user's home folder on the server cannot be used."""


class X2GoHostKeyException(X2GoException):
    """The server's host key is not the one that it should have."""


class X2GoSSHProxyException(X2GoException):
    """The SSH proxy cannot be used."""


class X2GoSSHProxyHostKeyException(X2GoSSHProxyException):
    """The SSH proxy's host key is not the one that it should have."""


class X2GoSSHProxyAuthenticationException(X2GoSSHProxyException):
    """The SSH proxy does not let us in."""


class X2GoSSHProxyPasswordRequiredException(X2GoSSHProxyException):
    """The SSH proxy wants a password."""


class X2GoTerminalSessionException(X2GoException):
    """The session's windows cannot be shown."""


class X2GoProxyException(X2GoTerminalSessionException):
    """nxproxy cannot be run."""


class X2GoSessionCacheException(X2GoException):
    """There is no such cache."""


class X2GoSessionRegistryException(X2GoException):
    """No session is registered so."""


class X2GoUserException(X2GoException):
    """The user may not run sessions on the server."""


class X2GoProfileException(X2GoException):
    """There is no such profile, or not with that value."""


class X2GoFwTunnelException(X2GoException):
    """A forward to the server failed."""


class X2GoRevFwTunnelException(X2GoException):
    """The server refused a reverse forward."""


class X2GoPrintException(X2GoException):
    """Printing failed."""


class X2GoPrintQueueException(X2GoPrintException):
    """The print queue failed."""


class X2GoPrintActionException(X2GoPrintException):
    """There is no such print action, or it failed."""


class X2GoMIMEboxActionException(X2GoException):
    """There is no such MIME box action, or it failed."""


class X2GoMIMEboxQueueException(X2GoException):
    """The MIME box failed."""


class X2GoNotImplementedYetException(X2GoException):
    """This is not implemented."""


class X2GoDesktopSharingException(X2GoException):
    """A desktop cannot be shared."""


class X2GoDesktopSharingDenied(X2GoDesktopSharingException):
    """The owner of a desktop does not share it."""


class X2GoTimeOutException(X2GoException):
    """The server did not answer in time."""


class X2GoBrokerConnectionException(X2GoException):
    """The broker cannot be reached, or refuses us."""


class X2GoTelekinesisClientException(X2GoException):
    """Telekinesis cannot be used."""


class X2GoBackendException(X2GoException):
    """There is no such backend."""


# Callers of python-x2go get paramiko's for a refused login.
AuthenticationException = AuthenticationFailed

# The first that fits is the one.
_TRANSLATED: Final[tuple[tuple[type[Exception], type[X2GoException]], ...]] = (
    (errors.NotRegistered, X2GoSessionRegistryException),
    (errors.NotConnected, X2GoClientException),
    (errors.BrokerError, X2GoBrokerConnectionException),
    (errors.ProfileError, X2GoProfileException),
    (errors.ConfigFileError, X2GoProfileException),
    (errors.AccessDenied, X2GoDesktopSharingDenied),
    (errors.SessionLimitReached, X2GoUserException),
    (errors.ControlError, X2GoControlSessionException),
    (errors.GraphicsError, X2GoTerminalSessionException),
    (errors.SessionStateError, X2GoSessionException),
    (errors.ServiceError, X2GoSessionException),
    (HostKeyError, X2GoHostKeyException),
    (RequestTimeout, X2GoTimeOutException),
    (ForwardRefused, X2GoRevFwTunnelException),
    (ConnectError, X2GoControlSessionException),
    (ConnectionLost, X2GoControlSessionException),
    (ChannelOpenError, X2GoControlSessionException),
    (RTunnelError, X2GoControlSessionException),
)
# What comes through as it is.
_KEPT: Final = (X2GoException, AuthenticationFailed, errors.NotSupported)


def translated(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """Have a method raise python-x2go's exceptions in the place of ours."""

    @functools.wraps(function)
    def calling(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except _KEPT:
            raise
        except (errors.X2GoError, RTunnelError) as error:
            for ours, theirs in _TRANSLATED:
                if isinstance(error, ours):
                    raise theirs(str(error)) from error
            raise

    return calling
