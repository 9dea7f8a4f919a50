"""Every error that rtunnel raises: one tree, SSH reason codes, and what to do.

Catch `RTunnelError` for all of them. An error that answers a message of the peer,
or that was sent to it, carries the number it has on the wire:

* `ConnectionLost.code`: SSH_DISCONNECT_* (RFC 4253, section 11.1),
* `ChannelOpenError.code`: SSH_OPEN_* (RFC 4254, section 5.1).

A message says what happened, then what to do about it.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final

# What this process, or this machine, has run out of: no fault of a target.
SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class DisconnectCode(IntEnum):
    """Reason codes of SSH_MSG_DISCONNECT (RFC 4253, section 11.1)."""

    HOST_NOT_ALLOWED_TO_CONNECT = 1
    PROTOCOL_ERROR = 2
    KEY_EXCHANGE_FAILED = 3
    MAC_ERROR = 5
    COMPRESSION_ERROR = 6
    SERVICE_NOT_AVAILABLE = 7
    PROTOCOL_VERSION_NOT_SUPPORTED = 8
    HOST_KEY_NOT_VERIFIABLE = 9
    CONNECTION_LOST = 10
    BY_APPLICATION = 11
    TOO_MANY_CONNECTIONS = 12
    AUTH_CANCELLED_BY_USER = 13
    NO_MORE_AUTH_METHODS_AVAILABLE = 14
    ILLEGAL_USER_NAME = 15


class OpenFailureCode(IntEnum):
    """Reason codes of SSH_MSG_CHANNEL_OPEN_FAILURE (RFC 4254, section 5.1)."""

    ADMINISTRATIVELY_PROHIBITED = 1
    CONNECT_FAILED = 2
    UNKNOWN_CHANNEL_TYPE = 3
    RESOURCE_SHORTAGE = 4


class RTunnelError(Exception):
    """Base of every error that rtunnel raises."""


class InvalidAddress(RTunnelError, ValueError):
    """A destination, bind or target that cannot be understood, or makes no sense."""


class ConfigError(RTunnelError):
    """A file or option that is wrong: names file, line and option."""


class BackendUnavailable(RTunnelError):
    """The backend that was named cannot run here, or not on this connection."""


# Before the connection stands.


class ConnectError(RTunnelError):
    """The connection to the server could not be made."""


class HostUnreachable(ConnectError):
    """The server's name, address or port does not answer."""


class HostKeyError(ConnectError):
    """The server's host key is not one that known_hosts vouches for."""

    code = DisconnectCode.HOST_KEY_NOT_VERIFIABLE


class HostKeyUnknown(HostKeyError):
    """known_hosts has no key for this server."""


class HostKeyChanged(HostKeyError):
    """known_hosts has another key for this server."""


class HostKeyRevoked(HostKeyError):
    """known_hosts marks this key as revoked."""


class AuthenticationFailed(ConnectError):
    """The server accepted none of the keys, passwords and answers."""

    code = DisconnectCode.NO_MORE_AUTH_METHODS_AVAILABLE


# On a connection that stood.


class ConnectionLost(RTunnelError):
    """The connection is over: closed by us or the peer, cut, or given up as dead."""

    def __init__(
        self, message: str, code: DisconnectCode = DisconnectCode.CONNECTION_LOST
    ) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(ConnectionLost):
    """The peer broke the protocol; the connection was ended for it."""

    def __init__(
        self, message: str, code: DisconnectCode = DisconnectCode.PROTOCOL_ERROR
    ) -> None:
        super().__init__(message, code)


class RequestRefused(RTunnelError):
    """The peer answered a global request with REQUEST_FAILURE (RFC 4254, section 4)."""


class RequestTimeout(RTunnelError, TimeoutError):
    """The peer did not answer a request in time."""


class ForwardRefused(RequestRefused):
    """The server will not listen where it was asked to."""


class PortInUse(ForwardRefused):
    """Something listens on that port, or holds that socket path, on the server."""


class ForwardingDenied(ForwardRefused):
    """The server's configuration or key options forbid this forward."""


class ListenerClosed(RTunnelError):
    """The listener is closed, or is closing."""


class ChannelOpenError(RTunnelError):
    """A channel could not be opened; `code` is what went over the wire."""

    def __init__(self, message: str, code: OpenFailureCode | int) -> None:
        super().__init__(message)
        self.code = code


class TargetUnreachable(ChannelOpenError):
    """The target of a forward refused, did not answer in time or does not exist."""

    def __init__(
        self,
        message: str,
        code: OpenFailureCode | int = OpenFailureCode.CONNECT_FAILED,
    ) -> None:
        super().__init__(message, code)
