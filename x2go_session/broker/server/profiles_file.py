"""Session profiles in a file: INI as x2gobroker has it, or TOML.

    [DEFAULT]                        [defaults]
    sshport=22                       sshport = 22

    [office]                         [profiles.office]
    name=Office                      name = "Office"
    host=srv-a, srv-b (10.0.2.12)    host = ["srv-a", "srv-b (10.0.2.12)"]
    acl-groups-allow=staff           acl-groups-allow = ["staff"]

Keys that begin with `acl-` and `broker-` are for the broker; all others are the
client's, and go to it as they are.
"""

from __future__ import annotations

import configparser
import contextlib
import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from rtunnel.errors import ConfigError
from rtunnel.toml_file import MOST_BYTES, Location, MisplacedError, check, read
from x2go_session.broker.server.acl import (
    Acl,
    ClientRule,
    Network,
    Order,
    Rule,
    networks,
)
from x2go_session.profiles.profile import KEYS, read_value
from x2go_session.profiles.values import Kind, Value

# Who is logged in at the broker, in the place of a user's name.
BROKER_USER: Final = "BROKER_USER"
# A key that the profile does not have, whatever the defaults say.
NOT_SET: Final = "not-set"
DEFAULTS: Final[Mapping[str, Value]] = {
    "user": BROKER_USER,
    "sshport": 22,
    "command": "TERMINAL",
}
# What files of x2gobroker may say, and what has no meaning here.
IGNORED: Final = frozenset(
    {
        "broker-agent-hostkey-policy",
        "broker-agent-query-mode",
        "broker-sshproxy-authorized-keys",
        "broker-use-load-checker",
        "default",
    }
)
_WORDS: Final = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
# `name (address)`, `name (address:port)`; IPv6 in brackets if a port follows.
_NAMED_HOST: Final = re.compile(r"(?P<name>\S+) \((?P<address>[^()\s]+)\)")
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}")
_SECTION: Final = re.compile(r"\[(?P<name>[^]]+)\]")
_KEY: Final = re.compile(r"(?P<key>[^\s=#;][^=]*?)\s*=")


@dataclass(frozen=True, slots=True)
class Host:
    """An X2Go server: the name it has itself, and where it is found."""

    name: str
    address: str
    port: int

    def __str__(self) -> str:
        where = f"[{self.address}]" if ":" in self.address else self.address
        return f"{where}:{self.port}"


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile: what its clients get, in the order of the file, and what they do not.

    None: as the settings of the broker say.
    """

    id: str
    values: Mapping[str, Value]
    hosts: tuple[Host, ...]
    acl: Acl
    autologin: bool | None
    authorized_keys: str | None
    probe: bool | None

    @property
    def shadows(self) -> bool:
        """Whether it shows a desktop that is there: on the first host, by its rules."""
        return self.values["command"] == "SHADOW"


def read_profiles(path: Path) -> dict[str, Profile]:
    """Read the profiles of a file, by id, sorted. Raises `ConfigError`."""
    file = read(path, ProfilesFile) if path.suffix == ".toml" else _read_ini(path)
    return {name: _profile(name, file) for name in sorted(file.profiles)}


# The schema.


def _texts(value: object) -> object:
    """Split the text of a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _order(value: object) -> object:
    return None if value == "" else value


def _truth(value: object) -> object:
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
OrderOrNone = Annotated[Order | None, BeforeValidator(_order)]
BoolOrNone = Annotated[bool | None, BeforeValidator(_truth)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A section: what the broker understands of it; the rest is the client's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    host: Texts | None = None
    sshport: Port | None = None
    users_allow: Texts | None = Field(default=None, alias="acl-users-allow")
    users_deny: Texts | None = Field(default=None, alias="acl-users-deny")
    users_order: OrderOrNone = Field(default=None, alias="acl-users-order")
    groups_allow: Texts | None = Field(default=None, alias="acl-groups-allow")
    groups_deny: Texts | None = Field(default=None, alias="acl-groups-deny")
    groups_order: OrderOrNone = Field(default=None, alias="acl-groups-order")
    clients_allow: Texts | None = Field(default=None, alias="acl-clients-allow")
    clients_deny: Texts | None = Field(default=None, alias="acl-clients-deny")
    clients_order: OrderOrNone = Field(default=None, alias="acl-clients-order")
    any_order: OrderOrNone = Field(default=None, alias="acl-any-order")
    autologin: BoolOrNone = Field(default=None, alias="broker-session-autologin")
    authorized_keys: str | None = Field(default=None, alias="broker-authorized-keys")
    probe: BoolOrNone = Field(default=None, alias="broker-portscan-x2goservers")

    @field_validator("host")
    @classmethod
    def _hosts_are_hosts(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in given or ():
            read_host(text, 22)
        return given

    @field_validator("clients_allow", "clients_deny")
    @classmethod
    def _clients_are_networks(
        cls, given: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        for text in given or ():
            networks(text)
        return given

    @model_validator(mode="after")
    def _rest_is_the_clients(self) -> Section:
        known = [field.alias or name for name, field in type(self).model_fields.items()]
        for key, value in (self.model_extra or {}).items():
            if key.startswith(("acl-", "broker-")) and key not in IGNORED:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise MisplacedError((key,), f"unknown key{hint}")
            if "\n" in key or "=" in key or key.startswith("["):
                raise MisplacedError((key,), "no key of a session profile")
            inner = value if isinstance(value, list | tuple) else [value]
            for each in inner:
                if not isinstance(each, str | int | bool) or "\n" in str(each):
                    raise MisplacedError(
                        (key,), "expected a line of text, a number, true or false"
                    )
            if value != NOT_SET and (problem := _problem(key, value)):
                raise MisplacedError((key,), problem)
        return self


class ProfilesFile(BaseModel):
    """A file of profiles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: Section = Section()
    profiles: dict[str, Section]

    @field_validator("profiles")
    @classmethod
    def _ids_are_names(cls, given: dict[str, Section]) -> dict[str, Section]:
        for name in given:
            if not re.fullmatch(r"[^\[\]\s\x00-\x1f]{1,128}", name):
                raise MisplacedError((name,), "an id has no blanks and no brackets")
        return given


def _problem(key: str, value: object) -> str | None:
    """Say what clients would not understand."""
    match _kind(key):
        case Kind.FLAG if not isinstance(value, bool) and value not in (0, 1):
            return "expected true or false"
        case Kind.NUMBER if not isinstance(value, int):
            return "expected a whole number"
    return None


def read_host(text: str, port: int) -> Host:
    """Read `name`, `name (address)` or `name (address:port)`. Raises ValueError."""
    named = _NAMED_HOST.fullmatch(text)
    name, address = (named["name"], named["address"]) if named else (text, text)
    found = re.fullmatch(r"\[?(?P<host>[^]\[]+?)\]?(?::(?P<port>\d{1,5}))?", address)
    if address.count(":") > 1 and not address.startswith("["):
        host = address
    elif found is None:
        host = ""
    else:
        host, port = found["host"], int(found["port"] or port)
    if not (_HOST_NAME.fullmatch(host) or _is_address(host)):
        raise ValueError(f"{text!r} is no host: expected name, or name (address:port)")
    if not 1 <= port <= 65535:
        raise ValueError(f"{text!r}: no port")
    return Host(name if named else host, host, port)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# From the schema to profiles.


def _profile(name: str, file: ProfilesFile) -> Profile:
    own, common = file.profiles[name], file.defaults
    merged = {**_given(common), **_given(own)}
    # The order of the file: what the profile says first.
    order = [*_given(own), *_given(common), *DEFAULTS]
    values: dict[str, Value] = {"name": name}
    for key in order:
        value = merged.get(key, DEFAULTS.get(key, ""))
        ours = key.startswith(("acl-", "broker-")) or key in IGNORED
        if not ours and value != NOT_SET:
            values[key] = list(value) if isinstance(value, tuple) else value
    port = values["sshport"]
    assert isinstance(port, int)
    hosts = values.setdefault("host", ["localhost"])
    assert isinstance(hosts, list)
    found = tuple(read_host(text, port) for text in hosts)
    values["host"] = [host.name for host in found]
    return Profile(
        name,
        values,
        found,
        _acl(merged),
        merged.get("broker-session-autologin"),
        merged.get("broker-authorized-keys") or None,
        merged.get("broker-portscan-x2goservers"),
    )


def _given(section: Section) -> dict[str, Any]:
    """Return what a section says, by the keys of the file."""
    found = section.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    return {
        key: tuple(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in found.items()
    }


def _acl(values: Mapping[str, Any]) -> Acl:
    any_order = values.get("acl-any-order", Order.DENY_ALLOW)

    def lists(kind: str) -> tuple[tuple[str, ...], tuple[str, ...], Order]:
        return (
            values.get(f"acl-{kind}-allow", ()),
            values.get(f"acl-{kind}-deny", ()),
            values.get(f"acl-{kind}-order", any_order),
        )

    def all_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
        return tuple(network for text in texts for network in networks(text))

    allow, deny, order = lists("clients")
    return Acl(
        Rule(*lists("users")),
        Rule(*lists("groups")),
        ClientRule(all_networks(allow), all_networks(deny), order),
    )


# INI.


def _read_ini(path: Path) -> ProfilesFile:
    parser = configparser.RawConfigParser(
        default_section="\0", delimiters=("=",), comment_prefixes=("#", ";")
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"{path} has more than {MOST_BYTES >> 20} MiB: is it the right file?"
            )
        text = data.decode()
        parser.read_string(text, str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8 text") from None
    except configparser.Error as error:
        line = getattr(error, "lineno", None) or getattr(error, "errors", [(1,)])[0][0]
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}:{line}: {said}") from None
    sections = {
        name: {key: _typed(key, value) for key, value in parser[name].items()}
        for name in parser.sections()
    }
    document = {"defaults": sections.pop("DEFAULT", {}), "profiles": sections}
    return check(document, ProfilesFile, path, lambda: _lines(text))


def _typed(key: str, text: str) -> object:
    match _kind(key):
        case Kind.LIST | Kind.HOSTS:
            return _texts(text)
        case Kind.FLAG | Kind.NUMBER:
            # What is neither is complained about with its line.
            with contextlib.suppress(ValueError):
                return read_value(key, text)
    return text


def _kind(key: str) -> Kind | None:
    return KEYS[key].metadata["kind"] if key in KEYS else None


def _lines(text: str) -> dict[Location, int]:
    lines: dict[Location, int] = {}
    table: Location = ()
    for number, line in enumerate(text.splitlines(), 1):
        if found := _SECTION.match(line):
            name = found["name"]
            table = ("defaults",) if name == "DEFAULT" else ("profiles", name)
            lines.setdefault(table, number)
        elif found := _KEY.match(line):
            lines.setdefault((*table, found["key"]), number)
    return lines
