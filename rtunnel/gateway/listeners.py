"""Where visitors come in: the ports and socket paths that clients have asked for.

The rules are those of sshd with GatewayPorts=no: whatever address a client asks for,
it gets that port of the loopback interface, of IPv4 and IPv6. A port belongs to one
listener at a time. It ends with its connection or its cancel, and in one more way:
when the same key asks for it on another connection. A client that lost its network is
back long before its old connection is known to be dead.

All of this belongs to the loop's thread. Nothing here blocks: no name is looked up,
and bind and listen do not wait for anybody.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import socket
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from rtunnel.addresses import LAST_PORT, SOCKET_PATH_BYTES
from rtunnel.errors import ConfigError
from rtunnel.gateway.authorized_keys import AuthorizedKey
from rtunnel.gateway.loop import Loop
from rtunnel.ssh.sockets import set_nodelay

log = logging.getLogger("rtunnel.gateway.listeners")

# As sshd: SSH_LISTEN_BACKLOG.
BACKLOG: Final = 128
# Ports that are tried when the client leaves the choice to us.
PORT_TRIES: Final = 100
# Below are the ports that only root may have (IPPORT_RESERVED), also if it is root
# who runs the gateway: its clients are not.
UNRESERVED_PORTS: Final = range(1024, LAST_PORT + 1)
# A name of DNS has at most 255 bytes (RFC 1035, section 2.3.4).
ADDRESS_CHARS_MAX: Final = 255
# As StreamLocalBindMask of sshd: for the owner only.
SOCKET_MODE: Final = 0o600

_NO_SUCH_FAMILY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True, slots=True)
class TcpRequest:
    """An address and port, as the client names them; port 0 leaves it to us."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"port {self.port}"


@dataclass(frozen=True, slots=True)
class UnixRequest:
    """The path of a Unix socket, as the client names it."""

    path: str

    def __str__(self) -> str:
        return f"socket {self.path!r}"


Request = TcpRequest | UnixRequest
Place = int | str


class Refused(Exception):
    """The client may not listen there; the text is for the client."""


class Owner(Protocol):
    """The client whose listener it is."""

    @property
    def key(self) -> AuthorizedKey:
        """The key it has logged in with."""

    def is_alive(self) -> bool:
        """Whether its connection stands, as far as is known."""

    def visit(
        self, listener: VisitorListener, visitor: socket.socket, origin: tuple[str, int]
    ) -> None:
        """Take a visitor, whose socket is owned from here. Must not block."""


class VisitorListener:
    """One port, or socket path, of one client."""

    def __init__(
        self, owner: Owner, request: Request, place: Place, sockets: list[socket.socket]
    ) -> None:
        self.owner = owner
        self.request = request
        self.place = place
        self.sockets = sockets
        self._inode = _inode(place) if isinstance(place, str) else None

    def __str__(self) -> str:
        return str(self.place)

    @property
    def port(self) -> int:
        """The port that visitors come to; 0 for a socket path."""
        return self.place if isinstance(self.place, int) else 0

    def close(self) -> None:
        """Close the sockets; the kernel resets the visitors that still wait."""
        for sock in self.sockets:
            sock.close()
        # Not another's, that was put there since.
        if isinstance(self.place, str) and _inode(self.place) == self._inode:
            with contextlib.suppress(OSError):
                os.unlink(self.place)


class Listeners:
    """All of them, by the place where they listen."""

    def __init__(self, loop: Loop, ports: range | None, folder: Path | None) -> None:
        """Allow these ports, and socket paths in this folder. Raises `ConfigError`."""
        if ports is not None and not _are_ports(ports):
            raise ConfigError(f"{ports} is no range of ports from 1 to {LAST_PORT}")
        self._loop = loop
        self._ports = ports
        self._folder = None if folder is None else _checked_folder(folder)
        self._by_place: dict[Place, VisitorListener] = {}

    def open(self, owner: Owner, request: Request) -> VisitorListener:
        """Listen for a client. Raises `Refused`."""
        place: Place
        if isinstance(request, TcpRequest):
            place, sockets = self._bind_tcp(owner, request)
        else:
            place, sockets = self._bind_unix(owner, request)
        listener = VisitorListener(owner, request, place, sockets)
        self._by_place[place] = listener
        for sock in sockets:
            self._loop.serve(sock, partial(_welcome, listener))
        return listener

    def cancel(self, owner: Owner, request: Request) -> bool:
        """Close a client's listener; False if it has none there."""
        place = (
            request.port
            if isinstance(request, TcpRequest)
            else self._path(request) or request.path
        )
        listener = self._by_place.get(place)
        if listener is None or listener.owner is not owner:
            return False
        self._close(listener)
        return True

    def close_all(self, owner: Owner) -> None:
        """Close all listeners of a client: its connection is over."""
        for listener in list(self._by_place.values()):
            if listener.owner is owner:
                self._close(listener)

    def _close(self, listener: VisitorListener) -> None:
        del self._by_place[listener.place]
        for sock in listener.sockets:
            self._loop.leave(sock)
        listener.close()

    def _free(self, owner: Owner, place: Place) -> None:
        """Take a place from a connection that is dead, or is of the same client."""
        listener = self._by_place.get(place)
        if listener is None:
            return
        old = listener.owner
        if old is owner:
            raise Refused(f"this connection already listens on {place}")
        if old.is_alive() and old.key.blob != owner.key.blob:
            raise Refused(f"{place} is in use by another client")
        log.warning(
            "listener taken over: place=%s from=%s by=%s key=%s",
            place,
            old,
            owner,
            owner.key.fingerprint,
        )
        self._close(listener)

    # Ports.

    def _bind_tcp(
        self, owner: Owner, request: TcpRequest
    ) -> tuple[int, list[socket.socket]]:
        if len(request.address) > ADDRESS_CHARS_MAX:
            raise Refused("that is no address to listen on")
        reason = owner.key.why_not_tcp(request.address, request.port)
        if reason is not None:
            raise Refused(reason)
        port = request.port
        if port == 0:
            return self._bind_any_port()
        if port not in (UNRESERVED_PORTS if self._ports is None else self._ports):
            raise Refused(f"port {port} is disabled on this gateway")
        self._free(owner, port)
        try:
            return _bind_loopback(port)
        except OSError as error:
            raise Refused(f"cannot listen on port {port}: {error.strerror}") from error

    def _bind_any_port(self) -> tuple[int, list[socket.socket]]:
        if self._ports is None:
            candidates = [0] * PORT_TRIES
        else:
            count = min(len(self._ports), PORT_TRIES)
            candidates = random.sample(self._ports, count)
        for port in candidates:
            try:
                return _bind_loopback(port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise Refused(f"cannot listen: {error.strerror}") from error
        raise Refused("no port is free")

    # Socket paths.

    def _path(self, request: UnixRequest) -> str | None:
        """Return the real path, if it is right in the folder that is allowed."""
        folder, name = os.path.split(request.path)
        if self._folder is None or name in ("", ".", "..") or "\0" in request.path:
            return None
        if not folder.startswith("/") or os.path.realpath(folder) != self._folder:
            return None
        return os.path.join(self._folder, name)

    def _bind_unix(
        self, owner: Owner, request: UnixRequest
    ) -> tuple[str, list[socket.socket]]:
        reason = owner.key.why_not_unix()
        if reason is not None:
            raise Refused(reason)
        if self._folder is None:
            raise Refused("socket paths are disabled on this gateway")
        path = self._path(request)
        if path is None:
            raise Refused(f"socket paths are disabled outside of {self._folder}")
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise Refused(f"a socket path has at most {SOCKET_PATH_BYTES} bytes")
        self._free(owner, path)
        try:
            return path, [_bind_path(path)]
        except OSError as error:
            raise Refused(f"cannot listen on {path}: {error.strerror}") from error


def _welcome(
    listener: VisitorListener, visitor: socket.socket, address: object
) -> None:
    set_nodelay(visitor)
    origin = (address[0], address[1]) if isinstance(address, tuple) else ("", 0)
    listener.owner.visit(listener, visitor, origin)


def _bind_loopback(port: int) -> tuple[int, list[socket.socket]]:
    """Listen on a port of 127.0.0.1 and ::1, as far as they exist; 0: any port.

    Both or none: half of a port, the other half being somebody else's, would take
    some visitors there and some here.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in (
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET6, "::1"),
        ):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno in _NO_SUCH_FAMILY:
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
                if error.errno in _NO_SUCH_FAMILY:
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


def _bind_path(path: str) -> socket.socket:
    """Listen on a Unix socket, in the place of one that nobody listens on any more."""
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


def _is_stale(path: str) -> bool:
    """Return whether it is a socket that nobody listens on. Never blocks."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _inode(path: str) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _are_ports(ports: range) -> bool:
    return ports.step == 1 and len(ports) > 0 and 0 < ports[0] <= ports[-1] <= LAST_PORT


def _checked_folder(folder: Path) -> str:
    if not folder.is_dir():
        raise ConfigError(f"the folder for socket paths does not exist: {folder}")
    return os.path.realpath(folder)
