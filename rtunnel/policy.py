"""What a listener allows its visitors: from where, how many, how fast, how long.

A policy is checked when it is made, so the rest of the package may trust it. The names
of its fields are the arguments of `Tunnel.listen` and the keys of a configuration.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

from rtunnel.addresses import LAST_PORT, parse_address_and_port
from rtunnel.errors import InvalidAddress
from rtunnel.proxy_protocol import VERSIONS

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
# Who goes first on a connection that several channels share; "auto": as it behaves.
Priority: TypeAlias = Literal["auto", "interactive", "bulk"]

CONNECT_TIMEOUT_S: Final = 10.0
# As the pump takes it (rtunnel._pump_types): far above any network.
RATE_MAX_BYTES_PER_S: Final = 10**11
# What a port of a permit may be, beside a number (PermitRemoteOpen of ssh_config(5)).
_ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one listener; the defaults allow everything.

    Raises ValueError, of which `InvalidAddress` is one, for what makes no sense.
    """

    # Networks or addresses of visitors. What is denied is; with `allow`, all others
    # are. An address that cannot be told is refused by either.
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    max_connections: int | None = None
    # For all connections of the listener together, in each direction by itself.
    rate_bytes_per_s: int | None = None
    # Without a byte in either direction.
    idle_timeout_s: float | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    priority: Priority = "auto"
    # The version of the header that a target is sent first.
    proxy_protocol: Literal[1, 2] | None = None
    # What visitors of a SOCKS listener may reach; None: anything.
    permit_open: tuple[Permit, ...] | None = field(default=None)

    @classmethod
    def of(
        cls,
        *,
        allow: Iterable[str | Network] = (),
        deny: Iterable[str | Network] = (),
        max_connections: int | None = None,
        rate_bytes_per_s: int | None = None,
        idle_timeout_s: float | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        priority: Priority = "auto",
        proxy_protocol: Literal[1, 2] | None = None,
        permit_open: Iterable[str] | None = None,
    ) -> Policy:
        """Read the rules as people write them. Raises ValueError."""
        return cls(
            allow=_read_networks(allow, "allow"),
            deny=_read_networks(deny, "deny"),
            max_connections=max_connections,
            rate_bytes_per_s=rate_bytes_per_s,
            idle_timeout_s=idle_timeout_s,
            connect_timeout_s=connect_timeout_s,
            priority=priority,
            proxy_protocol=proxy_protocol,
            permit_open=_read_permits(permit_open),
        )

    def __post_init__(self) -> None:
        _check_count("max_connections", self.max_connections, None)
        _check_count("rate_bytes_per_s", self.rate_bytes_per_s, RATE_MAX_BYTES_PER_S)
        _check_time("idle_timeout_s", self.idle_timeout_s)
        _check_time("connect_timeout_s", self.connect_timeout_s)
        if self.priority not in get_args(Priority):
            known = ", ".join(get_args(Priority))
            raise ValueError(f"unknown priority {self.priority!r}: use one of {known}")
        if self.proxy_protocol not in (None, *VERSIONS):
            raise ValueError(
                f"the PROXY protocol has the versions 1 and 2, not "
                f"{self.proxy_protocol!r}"
            )

    @property
    def looks_at_addresses(self) -> bool:
        """Whether it matters where a visitor comes from."""
        return bool(self.allow or self.deny)

    def admits(self, address: str) -> bool:
        """Return whether a visitor from this address may come in."""
        if not self.looks_at_addresses:
            return True
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if any(ip in network for network in self.deny):
            return False
        return not self.allow or any(ip in network for network in self.allow)

    def permits(self, host: str, port: int) -> bool:
        """Return whether a visitor may be connected to this place."""
        if self.permit_open is None:
            return True
        return any(permit.matches(host, port) for permit in self.permit_open)


@dataclass(frozen=True, slots=True)
class Permit:
    """A place that SOCKS visitors may reach: as the visitor names it, not looked up."""

    host: str | None  # None: any
    port: int | None

    def matches(self, host: str, port: int) -> bool:
        """Return whether it is this place."""
        if self.port not in (None, port):
            return False
        return self.host is None or _plain(self.host) == _plain(host)


def _plain(host: str) -> str:
    """Write an address in one way only: it has several, and one of them is enough."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().rstrip(".")


def _read_permits(permits: Iterable[str] | None) -> tuple[Permit, ...] | None:
    """Read what PermitRemoteOpen takes: `host:port`, `*` for either, any, none."""
    if permits is None:
        return None
    if isinstance(permits, str):
        raise _no_text("permit_open", permits)
    texts = list(permits)
    if texts == ["any"]:
        return None
    if texts == ["none"]:
        return ()
    return tuple(map(_read_permit, texts))


def _read_permit(text: str) -> Permit:
    if text in ("any", "none"):
        raise InvalidAddress(f"permit_open: {text!r} stands alone, or not at all")
    host, port = parse_address_and_port(text, "permit_open")
    if port != _ANY and not (port.isascii() and port.isdigit()):
        raise InvalidAddress(f"permit_open {text!r}: {port!r} is no port number")
    number = None if port == _ANY else int(port)
    if number is not None and not 0 < number <= LAST_PORT:
        raise InvalidAddress(f"permit_open {text!r}: a port is 1 to {LAST_PORT}")
    return Permit(None if host == _ANY else host, number)


def _read_networks(networks: Iterable[str | Network], what: str) -> tuple[Network, ...]:
    if isinstance(networks, str):
        raise _no_text(what, networks)
    return tuple(_read_network(network, what) for network in networks)


def _read_network(network: str | Network, what: str) -> Network:
    try:
        return ipaddress.ip_network(network)
    except ValueError as error:
        raise InvalidAddress(
            f"{what}: {error}; expected an address, or a network as 192.0.2.0/24"
        ) from None


def _no_text(what: str, text: str) -> ValueError:
    return ValueError(f"{what} is a list of texts: [{text!r}]")


def _check_count(what: str, value: int | None, most: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} is a number from 1 on, or None; got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{what} is at most {most}; got {value}")


def _check_time(what: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{what} is a time in seconds above 0; got {value!r}")
