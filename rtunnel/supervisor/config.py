"""What a supervisor keeps up: servers, and the tunnels through each; from TOML or code.

Every key has one meaning, and the same name as the argument of `rtunnel.connect` or
`Tunnel.listen` that it becomes. A key that is not known is a mistake, never ignored.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from rtunnel import toml_file
from rtunnel.addresses import (
    Bind,
    TcpBind,
    TcpTarget,
    UnixBind,
    UnixTarget,
    parse_bind,
    parse_destination,
    parse_target,
)
from rtunnel.errors import InvalidAddress
from rtunnel.policy import Policy
from rtunnel.services import SocksService
from rtunnel.supervisor.pacing import Pace
from rtunnel.toml_file import MisplacedError

Seconds = Annotated[float, Field(gt=0, le=86_400)]
_NO_FILE: Final = "none"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PATH_OF_PAGE: Final = re.compile(r"/[\x21-\x7e]*")


def _read_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            "a name has letters, digits, '_', '.' and '-', and 64 of them at most"
        )
    return value


def _read_path(value: str) -> str:
    if not _PATH_OF_PAGE.fullmatch(value):
        raise ValueError("the path of a page begins with / and has no spaces")
    return value


def _read_bind(value: object) -> Bind:
    if isinstance(value, int | str | tuple | TcpBind | UnixBind):
        return parse_bind(value)
    raise ValueError("expected a port, an address with a port, or a socket path")


def _read_handler(value: object) -> str | Callable[..., Any]:
    if isinstance(value, str) or callable(value):
        return value
    raise ValueError('expected a text, as "localhost:3000"')


def _read_destination(value: str) -> str:
    parse_destination(value)
    return value


def _read_status(value: str) -> str:
    bind = parse_bind(value)
    if not isinstance(bind, TcpBind):
        raise ValueError("expected a port, or an address with a port")
    return value


def _read_network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(
            f"{error}: expected an address, or a network as 192.0.2.0/24"
        ) from None
    return value


def _near_the_file(value: str, info: ValidationInfo) -> str:
    """Return a path that means the same wherever the process was started."""
    if value == _NO_FILE or value.startswith(("~", "%", "$")) or os.path.isabs(value):
        return value
    folder: Path = (info.context or {}).get("folder", Path())
    return os.path.abspath(folder / value)


# Names are shown in rows, logs and metrics.
Name = Annotated[str, AfterValidator(_read_name)]
LocalPath = Annotated[str, AfterValidator(_near_the_file)]
# Arrays are lists in TOML.
Paths = Annotated[tuple[LocalPath, ...], Field(strict=False)]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_read_network)], ...], Field(strict=False)
]


class Part(BaseModel):
    """A table of the file: immutable, and without keys that nobody knows."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
    )

    def given(self, *leave_out: str) -> dict[str, Any]:
        """Return what is set to something else than its default."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name not in leave_out and getattr(self, name) != field.default
        }


class HealthConfig(Part):
    """How to find out whether a target works; while it does not, its port is paused."""

    check: Literal["tcp", "http"] = "tcp"
    path: Annotated[str, AfterValidator(_read_path)] = "/"
    interval_s: Seconds = 10.0
    timeout_s: Seconds = 3.0
    failures: Annotated[int, Field(ge=1)] = 3  # in a row, before it is paused
    successes: Annotated[int, Field(ge=1)] = 1  # in a row, before it is resumed


class TunnelConfig(Part):
    """One port of a server, and where its visitors are taken to."""

    listen: Annotated[Bind, PlainValidator(_read_bind)]
    # In code, it may be a function, as for `Tunnel.listen`.
    to: Annotated[str | Callable[..., Any], PlainValidator(_read_handler)]
    priority: Literal["auto", "interactive", "bulk"] = "auto"
    connect_timeout_s: Seconds = 10.0
    allow: Networks = ()
    deny: Networks = ()
    max_connections: Annotated[int, Field(ge=1)] | None = None
    rate_bytes_per_s: Annotated[int, Field(ge=1)] | None = None
    idle_timeout_s: Seconds | None = None
    proxy_protocol: Literal[1, 2] | None = None
    permit_open: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    health: HealthConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> TunnelConfig:
        try:
            target = parse_target(self.to) if isinstance(self.to, str) else None
        except InvalidAddress as error:
            raise MisplacedError(("to",), str(error)) from None
        is_address = self.address is not None
        if self.health is not None and not is_address:
            raise MisplacedError(
                ("health",), "only a host and port, or a Unix socket, can be checked"
            )
        if self.proxy_protocol is not None and not is_address:
            raise MisplacedError(
                ("proxy_protocol",), "only a host and port, or a Unix socket, takes it"
            )
        if self.permit_open is not None and not isinstance(target, SocksService):
            raise MisplacedError(("permit_open",), 'this is a rule for to = "socks"')
        for key in ("allow", "deny"):
            if getattr(self, key) and isinstance(self.listen, UnixBind):
                raise MisplacedError(
                    (key,),
                    "visitors of a Unix socket have no address: the permissions of the "
                    "socket decide",
                )
        Policy.of(**self.listen_options)
        return self

    @property
    def address(self) -> TcpTarget | UnixTarget | None:
        """Where visitors are taken to, if that is an address."""
        target = parse_target(self.to) if isinstance(self.to, str) else None
        return target if isinstance(target, TcpTarget | UnixTarget) else None

    @property
    def target(self) -> str:
        """What to call that which visitors are taken to."""
        if isinstance(self.to, str):
            return self.to
        return f"{getattr(self.to, '__qualname__', type(self.to).__name__)}()"

    @property
    def listen_options(self) -> dict[str, Any]:
        """What `Tunnel.listen` is given beside the bind and the target."""
        return self.given("listen", "to", "health")

    def listens_like(self, other: TunnelConfig) -> bool:
        """Say whether the same listener serves both."""
        return (self.listen, self.to, self.listen_options) == (
            other.listen,
            other.to,
            other.listen_options,
        )


class ServerConfig(Part):
    """One SSH server, how it is reached, and the tunnels through it."""

    destination: Annotated[str, AfterValidator(_read_destination)]
    identity_files: Paths = ()
    certificate_files: Paths = ()
    known_hosts: LocalPath | None = None
    host_key_policy: Literal["yes", "accept-new", "no"] | None = None
    config_file: LocalPath | None = None
    agent: bool | None = None
    jump: str | None = None
    proxy_command: str | None = None
    connect_timeout_s: Seconds | None = None
    keepalive_interval_s: Seconds | None = None
    keepalive_count_max: Annotated[int, Field(ge=1)] | None = None
    ciphers: str | None = None
    compression: bool | None = None
    backend: Literal["auto", "engine", "pump", "python"] | None = None
    ssh_options: dict[str, str] = {}
    retry: Pace = Pace()
    tunnels: dict[Name, TunnelConfig] = {}

    @property
    def connect_options(self) -> dict[str, Any]:
        """What `rtunnel.connect` is given beside the destination."""
        # Nobody is there to be asked.
        options = {"BatchMode": "yes", **self.ssh_options}
        given = self.given("destination", "ssh_options", "retry", "tunnels")
        return given | {"ssh_options": options}

    def connects_like(self, other: ServerConfig) -> bool:
        """Say whether the same connection serves both."""
        return (
            self.destination == other.destination
            and self.connect_options == other.connect_options
        )


class Config(Part):
    """Everything that one supervisor keeps up."""

    status: Annotated[str, AfterValidator(_read_status)] | None = None
    servers: Annotated[dict[Name, ServerConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Config:
        taken: dict[tuple[str, Bind], str] = {}
        for server_name, server in self.servers.items():
            for name, tunnel in server.tunnels.items():
                bind = tunnel.listen
                if isinstance(bind, TcpBind) and bind.port == 0:
                    continue
                label = f"{server_name}.{name}"
                first = taken.setdefault((server.destination, bind), label)
                if first != label:
                    raise MisplacedError(
                        ("servers", server_name, "tunnels", name, "listen"),
                        f"{bind} is what the tunnel {first} listens on already",
                    )
        return self

    @property
    def status_place(self) -> tuple[str, int] | None:
        """The address and the port that the status is served on."""
        bind = None if self.status is None else parse_bind(self.status)
        return (bind.address, bind.port) if isinstance(bind, TcpBind) else None

    @property
    def tunnel_count(self) -> int:
        """How many tunnels there are, over all servers."""
        return sum(len(server.tunnels) for server in self.servers.values())


def load(path: str | os.PathLike[str]) -> Config:
    """Read a configuration file. Raises `ConfigError`, with a line for each mistake."""
    return toml_file.read(Path(path), Config)
