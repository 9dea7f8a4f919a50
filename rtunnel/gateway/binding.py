"""Listening sockets: where a client's request is listened on, and how.

Nothing here blocks: no name is looked up, and bind and listen do not wait for anybody.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from typing import Final

from rtunnel.addresses import ALL_INTERFACES, LOOPBACK
from rtunnel.gateway.settings import GatewayPorts

# As sshd: SSH_LISTEN_BACKLOG.
BACKLOG: Final = 128
# As StreamLocalBindMask of sshd: for the owner only.
SOCKET_MODE: Final = 0o600

LOOPBACK_ADDRESSES: Final = ("127.0.0.1", "::1")
ANY_ADDRESSES: Final = ("0.0.0.0", "::")

_NO_SUCH_FAMILY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """A port, of these addresses."""

    addresses: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        if self.addresses == LOOPBACK_ADDRESSES:
            return str(self.port)
        if self.addresses == ANY_ADDRESSES:
            return f"*:{self.port}"
        return ",".join(
            f"[{each}]:{self.port}" if ":" in each else f"{each}:{self.port}"
            for each in self.addresses
        )

    def overlaps(self, other: TcpPlace) -> bool:
        """Say whether some visitors would come to both."""
        if self.port != other.port:
            return False
        return any(
            one == another or {one, another} & set(ANY_ADDRESSES)
            for one in self.addresses
            for another in other.addresses
        )


# A port, or the path of a Unix socket.
Place = TcpPlace | str


def addresses_for(rule: GatewayPorts, wish: str) -> tuple[str, ...]:
    """Return where a client gets a port that it asked for at `wish`.

    Raises ValueError if that is no address.
    """
    if rule is GatewayPorts.LOOPBACK:
        return LOOPBACK_ADDRESSES
    if rule is GatewayPorts.ANY or wish in (ALL_INTERFACES, "*"):
        return ANY_ADDRESSES
    if wish == LOOPBACK:
        return LOOPBACK_ADDRESSES
    return (str(ipaddress.ip_address(wish)),)


def bind_port(addresses: tuple[str, ...], port: int) -> tuple[int, list[socket.socket]]:
    """Listen on a port of all these addresses, as far as they exist; 0: any port.

    All or none: half of a port, the other half being somebody else's, would take
    some visitors there and some here. Raises OSError.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno in _NO_SUCH_FAMILY and len(addresses) > 1:
                    continue
                raise
            sockets.append(sock)
            sock.setblocking(False)
            # Connections of an earlier listener may still be in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno in _NO_SUCH_FAMILY and len(addresses) > 1:
                    sockets.pop().close()
                    continue
                raise
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return port, sockets


def bind_path(path: str) -> socket.socket:
    """Listen on a Unix socket, in the place of one that nobody listens on any more.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Before bind: the file is made with this mode, and never had another.
        os.fchmod(sock.fileno(), SOCKET_MODE)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def unbind(place: Place, sockets: list[socket.socket], inode: int | None) -> None:
    """Close the sockets; the kernel resets the visitors that still wait."""
    for sock in sockets:
        sock.close()
    # Not another's, that was put there since.
    if isinstance(place, str) and inode_of(place) == inode:
        with contextlib.suppress(OSError):
            os.unlink(place)


def inode_of(path: str) -> int | None:
    """Return which file is at that path now."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _is_stale(path: str) -> bool:
    """Return whether it is a socket that nobody listens on. Never blocks."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
