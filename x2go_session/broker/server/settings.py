"""What a broker is told: one file of TOML. Paths are relative to its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from limits import parse_many
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from rtunnel import toml_file

Seconds = Annotated[float, Field(gt=0, le=366 * 86_400)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _near_the_file(value: str, info: ValidationInfo) -> str:
    folder: Path = (info.context or {}).get("folder", Path())
    return os.path.abspath(folder / os.path.expanduser(value))


def _state(value: str, info: ValidationInfo) -> str:
    if value.startswith(("postgresql://", "postgres://")):
        return value
    if not value.startswith("sqlite:") or value == "sqlite:":
        raise ValueError('expected "sqlite:FILE" or "postgresql://..."')
    return f"sqlite:{_near_the_file(value.removeprefix('sqlite:'), info)}"


def _limit(value: str) -> str:
    try:
        (_,) = parse_many(value)
    except ValueError:
        raise ValueError(f'{value!r} is no limit, as "10/minute" is one') from None
    return value


LocalPath = Annotated[str, AfterValidator(_near_the_file)]
Limit = Annotated[str, AfterValidator(_limit)]


class Part(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AuthenticationSettings(Part):
    """How users are verified over HTTP."""

    mechanism: Literal["pam", "htpasswd", "none"] = "pam"
    service: str = "x2go-broker"
    """The service of PAM."""
    file: LocalPath | None = None
    """The file of htpasswd(1)."""

    @model_validator(mode="after")
    def _htpasswd_has_a_file(self) -> AuthenticationSettings:
        if self.mechanism == "htpasswd" and self.file is None:
            raise ValueError('mechanism "htpasswd" needs file')
        return self


class CookieSettings(Part):
    """Authids."""

    rotate: bool = True
    """Whether each is good for one request only."""
    lifetime_s: Seconds = 36_000.0
    """How long after the password."""
    bind_address: bool = True
    """Whether one is good at the address of its password only."""
    preset_file: LocalPath | None = None
    """The file of the authid that all clients have, and must have."""


class LimitSettings(Part):
    """Limits against guessing."""

    per_user: Limit = "10/minute"
    per_address: Limit = "60/minute"


class ServerSettings(Part):
    """How the X2Go servers are asked over SSH, and what is put there."""

    user: str = "root"
    sudo: bool = False
    """Whether `user` becomes root by sudo(8), without a password."""
    identity_file: LocalPath | None = None
    known_hosts: LocalPath | None = None
    ssh_config: str = "none"
    timeout_s: Seconds = 8.0
    """How long a server may take; one that takes longer is dead for that request."""
    fresh_s: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """How old an answer on the load may be."""
    autologin: bool = False
    """Whether users log in to servers by one-shot keys."""
    authorized_keys: str = "%h/.x2go/authorized_keys"
    key_lifetime_s: Annotated[float, Field(ge=5, le=3600)] = 60.0


class BrokerSettings(Part):
    """All of it."""

    profiles: LocalPath
    state: Annotated[str, AfterValidator(_state), Field(repr=False)]
    authentication: AuthenticationSettings = AuthenticationSettings()
    cookies: CookieSettings = CookieSettings()
    limits: LimitSettings = LimitSettings()
    groups: dict[str, tuple[str, ...]] = {}
    """Groups of users, beside those of the system."""
    probe: bool = True
    """Whether servers that do not listen are left out."""
    servers: ServerSettings | None = None
    """Without it servers are not asked: no balance by load, and no resuming."""


def read_settings(path: Path) -> BrokerSettings:
    """Read the settings of a broker. Raises `ConfigError`: a line for each mistake."""
    return toml_file.read(path, BrokerSettings)
