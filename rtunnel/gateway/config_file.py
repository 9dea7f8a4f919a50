"""The configuration file of a gateway: TOML, with a schema (docs/gateway.md).

Each key has the name of what it sets in `rtunnel.gateway.settings`. A key that is not
known is a mistake, never passed over: it might be the one that keeps somebody out.
"""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from rtunnel import toml_file
from rtunnel.addresses import LAST_PORT, LOOPBACK, TcpBind, parse_bind
from rtunnel.errors import ConfigError
from rtunnel.gateway.settings import (
    NO_PENALTIES,
    Balance,
    GatewayPorts,
    Group,
    Limits,
    Network,
    Penalties,
    Rights,
    User,
    parse_networks,
)
from rtunnel.toml_file import MisplacedError

_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def _read_ports(value: object) -> range:
    """Read `8080` or `"8000-8099"`."""
    match = _PORTS.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError('expected a port, or a range of them as "8000-8099"')
    first = int(match[1])
    last = int(match[2] or first)
    if not 0 < first <= last <= LAST_PORT:
        raise ValueError(f"ports are from 1 to {LAST_PORT}, the lower one first")
    return range(first, last + 1)


def _read_path(value: object, info: ValidationInfo) -> Path:
    """Read a path; a relative one begins at the folder of the file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a path")
    folder: Path = (info.context or {}).get("folder", Path())
    return (folder / os.path.expanduser(value)).absolute()


def _read_networks(value: object) -> tuple[Network, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError('expected an array of networks, as ["10.0.0.0/8"]')
    try:
        return parse_networks(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _read_place(value: object) -> tuple[str, int]:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError("expected ADDRESS:PORT")
    try:
        return read_place(str(value))
    except ConfigError as error:
        raise ValueError(str(error)) from None


def read_place(text: str) -> tuple[str, int]:
    """Read `ADDRESS:PORT`, `*:PORT` or `PORT`. Raises `ConfigError`."""
    bind = parse_bind(text)
    if not isinstance(bind, TcpBind):
        raise ConfigError(f"{text!r} is no address with a port")
    return "127.0.0.1" if bind.address == LOOPBACK else bind.address, bind.port


PortRange = Annotated[range, BeforeValidator(_read_ports)]
FilePath = Annotated[Path, BeforeValidator(_read_path)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_read_networks)]
Place = Annotated[tuple[str, int], BeforeValidator(_read_place)]
UserName = Annotated[str, Field(min_length=1, max_length=64)]


class Part(BaseModel):
    """A table of the file.

    Where nothing is set, the defaults of `rtunnel.gateway.settings` hold: those that
    stand here are never looked at, if there is a `given` for it.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
    )

    def given(self) -> dict[str, Any]:
        """Return what the file says, and nothing else."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class RightsConfig(Part):
    """What a user may have: `rights`, and the tables of `users`."""

    ports: Annotated[tuple[PortRange, ...], Field(strict=False)] = ()
    gateway_ports: Annotated[GatewayPorts, Field(strict=False)] = GatewayPorts.LOOPBACK
    socket_folder: FilePath | None = None
    listeners_max: int = 0
    connections_max: int = 0
    channels_max: int = 0
    rate_bytes_per_s: int | None = None
    proxy_protocol: Literal[1, 2] | None = None
    permit_open: Annotated[tuple[str, ...], Field(strict=False)] = ()
    exec: bool = False
    shell: bool = False
    sftp: bool = False
    agent_forwarding: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Have each value looked at where it belongs, so that its line is named."""
        for name, value in self._rights().items():
            try:
                replace(Rights(), **{name: value})
            except ConfigError as error:
                raise MisplacedError((name,), str(error)) from None
        return self

    def _rights(self) -> dict[str, Any]:
        names = {field.name for field in fields(Rights)}
        return {name: value for name, value in self.given().items() if name in names}

    def over(self, rights: Rights) -> Rights:
        """Return these rights, with what is set here."""
        return replace(rights, **self._rights())


class UserConfig(RightsConfig):
    """A user by name."""

    authorized_keys: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()
    keys: Annotated[tuple[str, ...], Field(strict=False)] = ()


class GroupConfig(Part):
    """A place that several clients serve together."""

    port: Annotated[int, Field(ge=1, le=LAST_PORT)] | None = None
    socket: str | None = None
    balance: Annotated[Balance, Field(strict=False)] = Balance.ROUND_ROBIN
    users: Annotated[tuple[UserName, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.port is None) == (self.socket is None):
            raise ValueError("a group has either a port or a socket")
        try:
            self.group()
        except ConfigError as error:
            raise MisplacedError(("socket",), str(error)) from None
        return self

    def group(self) -> Group:
        """Return it as the gateway takes it."""
        place = self.port if self.socket is None else self.socket
        assert place is not None
        return Group(place, self.balance, self.users)


Seconds = Annotated[float, Field(gt=0, le=86_400)]
SecondsOrNone = Annotated[float, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]


class LimitsConfig(Part):
    """Limits of the whole gateway."""

    connections_max: Count = 1
    unauthenticated_max: Count = 1
    login_grace_s: Seconds = 1
    auth_tries_max: Annotated[int, Field(ge=1, le=10)] = 1
    client_alive_interval_s: SecondsOrNone = 0
    client_alive_count_max: Count = 1


class PenaltiesConfig(Part):
    """For how long an address is refused."""

    enabled: bool = True
    authfail_s: SecondsOrNone = 0
    noauth_s: SecondsOrNone = 0
    grace_exceeded_s: SecondsOrNone = 0
    min_s: SecondsOrNone = 0
    max_s: SecondsOrNone = 0
    sources_max: Count = 1
    prefix_ipv4: Annotated[int, Field(ge=0, le=32)] = 32
    prefix_ipv6: Annotated[int, Field(ge=0, le=128)] = 128
    exempt: Networks = ()

    def penalties(self) -> Penalties:
        """Return them as the gateway takes them."""
        given = self.given()
        return Penalties(**given) if given.pop("enabled", True) else NO_PENALTIES


class ProxiesConfig(Part):
    """From where a PROXY header comes before connections."""

    clients: Networks = ()
    visitors: Networks = ()


class GatewayConfig(Part):
    """The whole file."""

    listen: Place | None = None
    host_key: FilePath | None = None
    authorized_keys: Annotated[tuple[FilePath, ...], Field(strict=False)] | None = None
    status: Place | None = None
    rights: RightsConfig = RightsConfig()
    users: dict[UserName, UserConfig] = {}
    groups: Annotated[tuple[GroupConfig, ...], Field(strict=False)] = ()
    limits: LimitsConfig = LimitsConfig()
    penalties: PenaltiesConfig = PenaltiesConfig()
    proxies: ProxiesConfig = ProxiesConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[object] = set()
        for number, config in enumerate(self.groups):
            place = config.group().place
            if place in seen:
                raise MisplacedError(
                    ("groups", number), f"there is another group for {place}"
                )
            seen.add(place)
        return self

    def options(self) -> dict[str, Any]:
        """Return what `Gateway` is given, but for addresses and keys."""
        rights = self.rights.over(Rights())
        return {
            "rights": rights,
            "users": [
                User(name, (*user.keys, *user.authorized_keys), user.over(rights))
                for name, user in self.users.items()
            ],
            "groups": [config.group() for config in self.groups],
            "limits": Limits(**self.limits.given()),
            "penalties": self.penalties.penalties(),
            "proxies": self.proxies.clients,
            "visitor_proxies": self.proxies.visitors,
        }


def load(path: Path) -> GatewayConfig:
    """Read a configuration file. Raises `ConfigError`, with a line for each mistake."""
    return toml_file.read(path, GatewayConfig)
