"""Where visitors come in: the ports and socket paths that clients have asked for.

Where a port listens is for `GatewayPorts` to say. A place belongs to one client at a
time, unless the gateway has a group for it: then several serve it, and visitors go to
one after the other. A listener ends with its connection or its cancel, and in one more
way: when the same client asks for its place on another connection. A client that lost
its network is back long before its old connection is known to be dead.

All of this belongs to the loop's thread, but for what says otherwise.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from rtunnel.addresses import SOCKET_PATH_BYTES
from rtunnel.gateway import binding
from rtunnel.gateway.binding import Place, TcpPlace
from rtunnel.gateway.feeder import Feeder
from rtunnel.gateway.header_reader import HeaderReader
from rtunnel.gateway.loop import Loop
from rtunnel.gateway.settings import Balance, Group, GroupPlace, Network, is_in
from rtunnel.gateway.users import Login
from rtunnel.gateway.visitors import Traffic, Visitor, address_of
from rtunnel.proxy_protocol import ProxyHeader, encode
from rtunnel.ssh.sockets import set_nodelay

log = logging.getLogger("rtunnel.gateway.listeners")

# Ports that are tried when the client leaves the choice to us.
PORT_TRIES: Final = 100
# A name of DNS has at most 255 bytes (RFC 1035, section 2.3.4).
ADDRESS_CHARS_MAX: Final = 255


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


class Refused(Exception):
    """The client may not listen there; the text is for the client."""


class Owner(Protocol):
    """The client whose listener it is."""

    @property
    def login(self) -> Login:
        """Who it is, and what it may have."""

    def is_alive(self) -> bool:
        """Whether its connection stands, as far as is known."""

    def has_room(self) -> bool:
        """Whether it may have one more channel."""

    def visit(
        self,
        listener: VisitorListener,
        visitor: Visitor,
        on_failed: Callable[[], object],
    ) -> None:
        """Take a visitor, or call `on_failed`, on any thread. Must not block."""


class VisitorListener:
    """One place of one client."""

    def __init__(self, owner: Owner, request: Request, entrance: Entrance) -> None:
        self.owner = owner
        self.request = request
        self.entrance = entrance
        self.traffic = Traffic()

    def __str__(self) -> str:
        return str(self.entrance)

    @property
    def place(self) -> Place:
        """Where visitors come to."""
        return self.entrance.place

    @property
    def port(self) -> int:
        """The port that visitors come to; 0 for a socket path."""
        return self.place.port if isinstance(self.place, TcpPlace) else 0


class Entrance:
    """The sockets of one place, and the clients that serve it: its members."""

    def __init__(
        self, place: Place, sockets: list[socket.socket], group: Group | None
    ) -> None:
        self.place = place
        self.sockets = sockets
        self.group = group
        # Who has waited longest for a visitor comes first.
        self.members: list[VisitorListener] = []
        self._inode = binding.inode_of(place) if isinstance(place, str) else None

    def __str__(self) -> str:
        return str(self.place)

    def next(self, visitor: Visitor) -> VisitorListener | None:
        """Return who gets a visitor; None: nobody can.

        A member that leaves a visitor without an answer is asked last: its network
        may be gone, which shows only when its keepalives stay unanswered.
        """
        able = [
            member
            for member in self.members
            if member not in visitor.tried and member.owner.has_room()
        ]
        prompt = [member for member in able if not member.traffic.is_slow()] or able
        if not prompt:
            return None
        chosen = prompt[0]
        if self.group is not None and self.group.balance is Balance.LEAST_CONNECTIONS:
            chosen = min(prompt, key=lambda member: member.traffic.open_count)
        self.members.remove(chosen)
        self.members.append(chosen)
        return chosen

    def close(self) -> None:
        """Close the sockets; the kernel resets the visitors that still wait."""
        binding.unbind(self.place, self.sockets, self._inode)


class Listeners:
    """All of them, by the place where they listen."""

    def __init__(
        self,
        loop: Loop,
        feeder: Feeder,
        groups: Iterable[Group] = (),
        proxies: tuple[Network, ...] = (),
    ) -> None:
        """`proxies` are load balancers that put a PROXY header before visitors."""
        self._loop = loop
        self._groups: dict[GroupPlace, Group] = {each.place: each for each in groups}
        self._proxies = proxies
        self._feeder = feeder
        self._by_place: dict[Place, Entrance] = {}
        # The same, for those who look for something else than a place.
        self._by_port: defaultdict[int, list[Entrance]] = defaultdict(list)
        self._by_group: dict[GroupPlace, Entrance] = {}
        self._by_owner: dict[Owner, list[VisitorListener]] = {}
        self._users: Counter[str] = Counter()
        self._readers: set[HeaderReader] = set()

    def reload(self, groups: Iterable[Group], proxies: tuple[Network, ...]) -> None:
        """Have other groups and load balancers; what is open stays as it is."""
        self._groups = {each.place: each for each in groups}
        self._proxies = proxies

    def open(self, owner: Owner, request: Request) -> VisitorListener:
        """Listen for a client. Raises `Refused`."""
        limit = owner.login.rights.listeners_max
        if self._users[owner.login.user] >= limit:
            raise Refused(f"more than {limit} listeners are disabled for this user")
        if isinstance(request, TcpRequest):
            entrance = self._open_tcp(owner, request)
        else:
            entrance = self._open_unix(owner, request)
        listener = VisitorListener(owner, request, entrance)
        entrance.members.insert(0, listener)
        self._by_owner.setdefault(owner, []).append(listener)
        self._users[owner.login.user] += 1
        if entrance.place not in self._by_place:
            self._by_place[entrance.place] = entrance
            if isinstance(entrance.place, TcpPlace):
                self._by_port[entrance.place.port].append(entrance)
            if entrance.group is not None:
                self._by_group[entrance.group.place] = entrance
            for sock in entrance.sockets:
                self._loop.serve(sock, partial(self._welcome, entrance))
        return listener

    def cancel(self, owner: Owner, request: Request) -> bool:
        """Close a client's listener; False if it has none there."""
        for listener in self.of(owner):
            asked = listener.request
            if isinstance(asked, TcpRequest) and isinstance(request, TcpRequest):
                # The address is that of the request; some clients name another one,
                # which does no harm while it is clear what is meant.
                is_it = listener.port == request.port and (
                    asked.address == request.address or not self._is_double(listener)
                )
            elif isinstance(request, UnixRequest):
                is_it = listener.place == self._path(owner, request)
            else:
                is_it = False
            if is_it:
                self._close(listener)
                return True
        return False

    def of(self, owner: Owner) -> list[VisitorListener]:
        """Return the listeners of one client. Any thread."""
        return list(self._by_owner.get(owner, ()))

    def close_all(self, owner: Owner) -> None:
        """Close all listeners of a client: its connection is over."""
        for listener in self.of(owner):
            self._close(listener)

    def stop(self) -> None:
        """Let go of visitors that are still at the door."""
        for reader in list(self._readers):
            reader.close()
        self._readers.clear()

    def _is_double(self, listener: VisitorListener) -> bool:
        """Say whether its client has the same port at another address, too."""
        return any(
            other is not listener and other.port == listener.port
            for other in self.of(listener.owner)
        )

    def _close(self, listener: VisitorListener) -> None:
        entrance, owner = listener.entrance, listener.owner
        entrance.members.remove(listener)
        self._by_owner[owner].remove(listener)
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        self._users[owner.login.user] -= 1
        if not self._users[owner.login.user]:
            del self._users[owner.login.user]
        if entrance.members:
            log.info("member gone: place=%s conn=%s", entrance, owner)
            return
        del self._by_place[entrance.place]
        if isinstance(entrance.place, TcpPlace):
            others = self._by_port[entrance.place.port]
            others.remove(entrance)
            if not others:
                del self._by_port[entrance.place.port]
        if entrance.group is not None:
            del self._by_group[entrance.group.place]
        for sock in entrance.sockets:
            self._loop.leave(sock)
        entrance.close()

    def _join(self, owner: Owner, place: GroupPlace) -> Entrance | None:
        """Return the entrance that a client becomes another member of, if any."""
        group = self._groups[place]
        if group.users and owner.login.user not in group.users:
            raise Refused(f"{place} is disabled for users outside of its group")
        entrance = self._by_group.get(place)
        if entrance is not None:
            if any(member.owner is owner for member in entrance.members):
                raise Refused(f"this connection already listens on {place}")
            log.info("member joins: place=%s conn=%s", entrance, owner)
        return entrance

    def _free(self, owner: Owner, place: Place) -> None:
        """Take a place from a connection that is dead, or is of the same client."""
        if isinstance(place, TcpPlace):
            near = self._by_port.get(place.port, [])
            found = [
                entrance
                for entrance in near
                if isinstance(entrance.place, TcpPlace)
                and entrance.place.overlaps(place)
            ]
        else:
            found = [self._by_place[place]] if place in self._by_place else []
        for entrance in found:
            for listener in list(entrance.members):
                self._take_over(owner, listener)

    def _take_over(self, owner: Owner, listener: VisitorListener) -> None:
        old = listener.owner
        if old is owner:
            raise Refused(f"this connection already listens on {listener}")
        if old.is_alive() and old.login.identity != owner.login.identity:
            raise Refused(f"{listener} is in use by another client")
        log.warning(
            "listener taken over: place=%s from=%s by=%s key=%s",
            listener,
            old,
            owner,
            owner.login.key.fingerprint,
        )
        self._close(listener)

    # Ports.

    def _open_tcp(self, owner: Owner, request: TcpRequest) -> Entrance:
        if len(request.address) > ADDRESS_CHARS_MAX:
            raise Refused("that is no address to listen on")
        login = owner.login
        reason = login.key.why_not_tcp(request.address, request.port)
        if reason is not None:
            raise Refused(reason)
        try:
            addresses = binding.addresses_for(
                login.rights.gateway_ports, request.address
            )
        except ValueError:
            raise Refused(
                f"cannot listen on {request.address!r}: name an IP address of the "
                "gateway, localhost or *"
            ) from None
        port = request.port
        if port == 0:
            return self._open_any_port(login, addresses)
        if not any(port in ports for ports in login.rights.ports):
            raise Refused(f"port {port} is disabled on this gateway")
        group = self._groups.get(port)
        if group is not None:
            joined = self._join(owner, port)
            if joined is not None:
                return joined
        self._free(owner, TcpPlace(addresses, port))
        try:
            port, sockets = binding.bind_port(addresses, port)
        except OSError as error:
            raise Refused(f"cannot listen on port {port}: {error.strerror}") from error
        return Entrance(TcpPlace(addresses, port), sockets, group)

    def _open_any_port(self, login: Login, addresses: tuple[str, ...]) -> Entrance:
        ranges = [ports for ports in login.rights.ports if ports[-1] >= 1024]
        for port in self._candidates(ranges):
            if port in self._groups:
                continue
            try:
                port, sockets = binding.bind_port(addresses, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise Refused(f"cannot listen: {error.strerror}") from error
                continue
            if port in self._groups:
                for sock in sockets:
                    sock.close()
                continue
            return Entrance(TcpPlace(addresses, port), sockets, None)
        raise Refused("no port is free")

    @staticmethod
    def _candidates(ranges: list[range]) -> list[int]:
        """Return ports to try; 0 lets the kernel choose, where any will do."""
        if any(1024 in ports and 65535 in ports for ports in ranges):
            return [0] * PORT_TRIES
        ports = [port for ports in ranges for port in ports]
        return random.sample(ports, min(len(ports), PORT_TRIES))

    # Socket paths.

    @staticmethod
    def _folder(owner: Owner) -> str | None:
        folder = owner.login.rights.socket_folder
        return None if folder is None else os.path.realpath(folder)

    def _path(self, owner: Owner, request: UnixRequest) -> str | None:
        """Return the real path, if it is right in the folder that is allowed."""
        allowed = self._folder(owner)
        folder, name = os.path.split(request.path)
        if allowed is None or name in ("", ".", "..") or "\0" in request.path:
            return None
        if not folder.startswith("/") or os.path.realpath(folder) != allowed:
            return None
        return os.path.join(allowed, name)

    def _open_unix(self, owner: Owner, request: UnixRequest) -> Entrance:
        reason = owner.login.key.why_not_unix()
        if reason is not None:
            raise Refused(reason)
        folder = self._folder(owner)
        if folder is None:
            raise Refused("socket paths are disabled on this gateway")
        path = self._path(owner, request)
        if path is None:
            raise Refused(f"socket paths are disabled outside of {folder}")
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise Refused(f"a socket path has at most {SOCKET_PATH_BYTES} bytes")
        group = self._groups.get(os.path.basename(path))
        if group is not None:
            joined = self._join(owner, os.path.basename(path))
            if joined is not None:
                return joined
        self._free(owner, path)
        try:
            return Entrance(path, [binding.bind_path(path)], group)
        except OSError as error:
            raise Refused(f"cannot listen on {path}: {error.strerror}") from error

    # Visitors.

    def _welcome(
        self, entrance: Entrance, sock: socket.socket, address: object
    ) -> None:
        set_nodelay(sock)
        origin = address_of(address)
        if not is_in(origin[0], self._proxies):
            self._admit(entrance, sock, origin)
            return

        def read(header: ProxyHeader | None) -> None:
            self._readers.discard(reader)
            if header is not None:
                self._admit(entrance, sock, header.source or origin)

        reader = HeaderReader(self._loop, sock, origin, read)
        self._readers.add(reader)

    def _admit(
        self, entrance: Entrance, sock: socket.socket, origin: tuple[str, int]
    ) -> None:
        if not entrance.members:
            # The listener ended while its header was read.
            sock.close()
            return
        login = entrance.members[0].owner.login
        header = b""
        if login.rights.proxy_protocol is not None:
            here = address_of(sock.getsockname())
            header = encode(login.rights.proxy_protocol, origin, here)
        sock = self._feeder.wrap(
            sock,
            user=login.user,
            rate_bytes_per_s=login.rights.rate_bytes_per_s,
            header=header,
        )
        visitor = Visitor(sock, origin, is_shared=entrance.group is not None)
        self._offer(entrance, visitor)

    def _offer(self, entrance: Entrance, visitor: Visitor) -> None:
        """Give a visitor to a member that has not been asked yet."""
        member = entrance.next(visitor)
        if member is None:
            reason = "too many visitors" if not visitor.tried else "nobody takes it"
            for each in entrance.members[:1]:
                each.traffic.refuse(reason)
            log.warning("visitor turned away: place=%s: %s", entrance, reason)
            visitor.turn_away()
            return
        visitor.tried.add(member)
        member.owner.visit(member, visitor, partial(self._failed, entrance, visitor))

    def _failed(self, entrance: Entrance, visitor: Visitor) -> None:
        """A member could not take a visitor: its socket is closed. Any thread."""
        if entrance.group is None or not self._loop.call(
            partial(self._offer_again, entrance, visitor)
        ):
            visitor.settle()

    def _offer_again(self, entrance: Entrance, visitor: Visitor) -> None:
        if visitor.again():
            self._offer(entrance, visitor)
