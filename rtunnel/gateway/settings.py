"""What a gateway allows: rights of users, groups, limits, penalties.

Each class says what is allowed where nothing is set. The names are those of the
configuration file, too (docs/gateway.md).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from rtunnel.addresses import LAST_PORT
from rtunnel.errors import ConfigError
from rtunnel.proxy_protocol import VERSIONS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# A port, or the name of a socket in the folder for them.
GroupPlace = int | str

LOOPBACK_NETWORKS: Final = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv6Network("::1/128"),
)
# Below are the ports that only root may have (IPPORT_RESERVED), also if it is root
# who runs the gateway: its clients are not.
UNRESERVED_PORTS: Final = range(1024, LAST_PORT + 1)
# The least rate that is of use: a packet of Ethernet in a second.
RATE_MIN_BYTES_PER_S: Final = 1500


class GatewayPorts(Enum):
    """Where ports listen; the values are those of sshd_config(5)."""

    LOOPBACK = "no"  # whatever address the client asks for
    ANY = "yes"  # on all addresses, whatever the client asks for
    CHOSEN = "clientspecified"  # where the client asks for


class Balance(Enum):
    """Which member of a group gets the next visitor."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may have. Keys of authorized_keys may take away from it."""

    ports: tuple[range, ...] = (UNRESERVED_PORTS,)
    gateway_ports: GatewayPorts = GatewayPorts.LOOPBACK
    # Unix sockets may be made right in this folder.
    socket_folder: Path | None = None
    listeners_max: int = 1000
    # SSH connections of this user at the same time.
    connections_max: int = 1000
    # Visitors, that is channels, of one SSH connection at the same time.
    channels_max: int = 1000
    # Of all visitors together, each way.
    rate_bytes_per_s: int | None = None
    # Put this version of a PROXY header before what a visitor sends.
    proxy_protocol: int | None = None
    # Where direct-tcpip may connect to: "host:port", with patterns.
    permit_open: tuple[str, ...] = ()
    # These run as who runs the gateway.
    exec: bool = False
    shell: bool = False
    sftp: bool = False
    agent_forwarding: bool = False

    def __post_init__(self) -> None:
        for ports in self.ports:
            if not _are_ports(ports):
                raise ConfigError(f"{ports} is no range of ports from 1 to {LAST_PORT}")
        if self.socket_folder is not None and not os.path.isdir(self.socket_folder):
            raise ConfigError(
                f"the folder for socket paths does not exist: {self.socket_folder}"
            )
        for name in ("listeners_max", "connections_max", "channels_max"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is a number from 0 on")
        rate = self.rate_bytes_per_s
        if rate is not None and rate < RATE_MIN_BYTES_PER_S:
            raise ConfigError(
                f"rate_bytes_per_s is at least {RATE_MIN_BYTES_PER_S}, not {rate}"
            )
        if self.proxy_protocol not in (None, *VERSIONS):
            raise ConfigError(f"proxy_protocol is 1 or 2, not {self.proxy_protocol}")
        for permit in self.permit_open:
            host, _, port = permit.rpartition(":")
            if not host or not (port == "*" or _is_port(port)):
                raise ConfigError(
                    f"permit_open: expected host:port, got {permit!r}; * stands for any"
                )


@dataclass(frozen=True, slots=True)
class User:
    """A user by name: lines and files of authorized_keys, and rights."""

    name: str
    authorized_keys: tuple[str | Path, ...]
    rights: Rights = field(default_factory=Rights)


@dataclass(frozen=True, slots=True)
class Group:
    """A place that several clients serve together. `users` may join: () is everybody
    who may have that place at all."""

    place: GroupPlace
    balance: Balance = Balance.ROUND_ROBIN
    users: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.place, int):
            if not 0 < self.place <= LAST_PORT:
                raise ConfigError(f"a group has a port from 1 to {LAST_PORT}")
        elif "/" in self.place or self.place in ("", ".", ".."):
            raise ConfigError(
                f"a group's socket is the name of a file, without a folder: "
                f"{self.place!r}"
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the whole gateway. The precedents are options of sshd_config(5)."""

    connections_max: int = 10_000
    # The last number of MaxStartups (10:30:100), from which on all are refused.
    unauthenticated_max: int = 100
    # LoginGraceTime.
    login_grace_s: float = 120.0
    # MaxAuthTries; after 10, paramiko ends the connection in any case.
    auth_tries_max: int = 6
    # ClientAliveInterval (where it is 0 by default), ClientAliveCountMax.
    client_alive_interval_s: float = 15.0
    client_alive_count_max: int = 3

    def __post_init__(self) -> None:
        for name in (
            *("connections_max", "unauthenticated_max", "login_grace_s"),
            *("auth_tries_max", "client_alive_count_max"),
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is a number above 0")
        if self.client_alive_interval_s < 0:
            raise ConfigError("client_alive_interval_s is a number of seconds, or 0")


@dataclass(frozen=True, slots=True)
class Penalties:
    """For how long an address is refused, as PerSourcePenalties of sshd_config(5).

    Penalties add up; they count from `min_s` on, and never exceed `max_s`.
    """

    authfail_s: float = 5.0
    noauth_s: float = 1.0
    grace_exceeded_s: float = 20.0
    min_s: float = 15.0
    max_s: float = 600.0
    sources_max: int = 65_536
    # Who has one address of IPv6 has many: PerSourceNetBlockSize.
    prefix_ipv4: int = 32
    prefix_ipv6: int = 128
    # Never refused. On this machine all users have one address.
    exempt: tuple[Network, ...] = LOOPBACK_NETWORKS

    def __post_init__(self) -> None:
        for name in (
            *("authfail_s", "noauth_s", "grace_exceeded_s", "min_s", "max_s"),
            "sources_max",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is a number from 0 on")
        if not 0 <= self.prefix_ipv4 <= 32 or not 0 <= self.prefix_ipv6 <= 128:
            raise ConfigError("prefix_ipv4 is 0 to 32, prefix_ipv6 is 0 to 128")


NO_PENALTIES: Final = Penalties(authfail_s=0.0, noauth_s=0.0, grace_exceeded_s=0.0)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks, `192.0.2.1` or `10.0.0.0/8`.

    Raises `ConfigError`.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is no address and no network: {error}"
            ) from None
    return tuple(networks)


def is_in(address: str, networks: Iterable[Network]) -> bool:
    """Say whether an address is in one of the networks; no address is in none."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in networks)


def _is_port(text: str) -> bool:
    return text.isdecimal() and text.isascii() and 0 < int(text[:6]) <= LAST_PORT


def _are_ports(ports: range) -> bool:
    return ports.step == 1 and len(ports) > 0 and 0 < ports[0] <= ports[-1] <= LAST_PORT
