"""The forwards that this side requested, and which of them an open belongs to.

Theory of operation (RFC 4254, section 7). A client asks the server to listen; for
each visitor the server opens a `forwarded-tcpip` channel that names the address and
port *the visitor came to*. Nothing else ties the open to the request, so:

* An entry is added before the request is sent. A visitor may be waiting already,
  and the open may be the packet right behind the reply.
* A request for port 0 has no port yet. Until its reply names one, an open for an
  unknown port may be its own: it is parked, and matched again after the reply.
* An entry stays until its cancel is answered, for opens that are under way.
* An open that matches nothing MUST be rejected (section 7.2).

Servers name the address as it was requested (OpenSSH), or the address that was bound
(others). So an address matches itself and its aliases, and a wildcard matches by
port. Twisted Conch repeats the requested port 0 in the open: that matches if it can
mean one forward only.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import Final

from rtunnel.addresses import Bind, TcpBind, UnixBind
from rtunnel.errors import PortInUse, ProtocolError
from rtunnel.wire import Reader, string, u32

FORWARDED_TCPIP: Final = "forwarded-tcpip"
FORWARDED_STREAMLOCAL: Final = "forwarded-streamlocal@openssh.com"
DIRECT_TCPIP: Final = "direct-tcpip"
DIRECT_STREAMLOCAL: Final = "direct-streamlocal@openssh.com"

_WILDCARDS: Final = frozenset({"", "*", "0.0.0.0", "::"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Forward:
    """One requested forward: what was asked for, and the port the server gave.

    Compared by identity: the same address and port may be requested again while the
    cancel of the first request is still unanswered.
    """

    def __init__(self, bind: Bind) -> None:
        self.bind = bind
        self._allocated_port: int | None = None

    def __str__(self) -> str:
        if isinstance(self.bind, TcpBind) and self._allocated_port is not None:
            return str(TcpBind(self.bind.address, self._allocated_port))
        return str(self.bind)

    @property
    def channel_kind(self) -> str:
        """The type of the channels that belong to this forward."""
        if isinstance(self.bind, UnixBind):
            return FORWARDED_STREAMLOCAL
        return FORWARDED_TCPIP

    @property
    def address(self) -> str:
        """The address, or socket path, as it was requested."""
        bind = self.bind
        return bind.path if isinstance(bind, UnixBind) else bind.address

    @property
    def port(self) -> int:
        """The port the server listens on; 0 for a socket path, or not known yet."""
        if isinstance(self.bind, UnixBind):
            return 0
        return self._allocated_port or self.bind.port

    @property
    def wants_port(self) -> bool:
        """Whether the server has yet to say which port it chose."""
        return isinstance(self.bind, TcpBind) and self.port == 0

    def resolve(self, reply: bytes) -> None:
        """Take the server's REQUEST_SUCCESS; for port 0 it names the port.

        Payload (only if port 0 was requested)::
            uint32 port that was bound
        """
        if self.wants_port:
            port = Reader(reply).u32()
            if not 0 < port < 65536:
                raise ProtocolError(f"the server says that it bound port {port}")
            self._allocated_port = port

    def request(self) -> tuple[str, bytes]:
        """Return the global request that asks for this forward."""
        if isinstance(self.bind, UnixBind):
            return "streamlocal-forward@openssh.com", string(self.address)
        return "tcpip-forward", string(self.address) + u32(self.bind.port)

    def cancel_request(self) -> tuple[str, bytes]:
        """Return the global request that ends this forward.

        It names the address as requested (a server looks for exactly that) and the
        port as allocated.
        """
        if isinstance(self.bind, UnixBind):
            return "cancel-streamlocal-forward@openssh.com", string(self.address)
        return "cancel-tcpip-forward", string(self.address) + u32(self.port)


class Verdict(Enum):
    """What to do with an open that no entry claims."""

    PARK = "park"
    REJECT = "reject"


class ForwardTable:
    """All requested forwards of one connection. Not locked: the owner does that."""

    def __init__(self) -> None:
        self._entries: list[Forward] = []
        self._cancelling: set[Forward] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, forward: Forward) -> bool:
        return forward in self._entries

    def add(self, forward: Forward) -> None:
        """Enter a forward, before its request is sent.

        Raises `PortInUse` when this connection already has the same one.
        """
        for entry in self._entries:
            if (
                entry.channel_kind == forward.channel_kind
                and (entry.address, entry.port) == (forward.address, forward.port)
                and not forward.wants_port
                and entry not in self._cancelling
            ):
                raise PortInUse(
                    f"this connection already listens on {forward}: close that "
                    "listener first, or choose another port"
                )
        self._entries.append(forward)

    def mark_cancelling(self, forward: Forward) -> None:
        """Note that the cancel is under way: the same bind may be requested anew."""
        self._cancelling.add(forward)

    def remove(self, forward: Forward) -> None:
        """Drop a forward: its request was refused, or its cancel was answered."""
        if forward in self._entries:
            self._entries.remove(forward)
        self._cancelling.discard(forward)

    def match(self, kind: str, address: str, port: int) -> Forward | Verdict:
        """Find the forward that an open of type `kind` belongs to.

        `address` and `port` are what the server says the visitor came to; for a
        socket path, the path and 0.
        """
        if kind == FORWARDED_STREAMLOCAL:
            for entry in self._entries:
                if entry.channel_kind == kind and entry.address == address:
                    return entry
            return Verdict.REJECT
        tcp = [entry for entry in self._entries if entry.channel_kind == kind]
        named = [entry for entry in tcp if _is_port_of(entry, port)]
        if port == 0 and len(named) > 1:
            # Conch's port 0, and several of them: a guess could mix two forwards.
            return Verdict.REJECT
        for matches in (_is_same, _is_alias, _is_wildcard):
            for entry in named:
                if matches(entry.address, address):
                    return entry
        if any(entry.wants_port for entry in tcp):
            return Verdict.PARK
        return Verdict.REJECT


def _is_port_of(forward: Forward, port: int) -> bool:
    if port == 0:
        return isinstance(forward.bind, TcpBind) and forward.bind.port == 0
    return forward.port == port


def _is_same(requested: str, told: str) -> bool:
    return requested == told


def _is_alias(requested: str, told: str) -> bool:
    if requested in _LOOPBACK and told in _LOOPBACK:
        return requested == "localhost" or told == "localhost"
    try:
        return ipaddress.ip_address(requested) == ipaddress.ip_address(told)
    except ValueError:
        return requested.lower() == told.lower()


def _is_wildcard(requested: str, told: str) -> bool:
    return requested in _WILDCARDS
