"""Who may use the gateway, and for what: lines of authorized_keys (sshd(8)).

    [options] key-type base64-key [comment]

`options` is a list of words separated by commas; a value stands in double quotes, in
which `\\"` is a quote. Three kinds of options are understood:

* who may use the key: `from="patterns"`, `expiry-time="YYYYMMDD[HHMM[SS]][Z]"`, and,
  for the key of an authority that signs certificates, `cert-authority` with
  `principals="names"`;
* what for: `restrict`, `port-forwarding`, `no-port-forwarding`, `permitlisten`,
  `permitopen`, and, where the gateway has any of that at all, `command` (who has it
  gets no session here), `pty`, `agent-forwarding` and their opposites;
* those about what nobody gets here anyway (`no-x11-forwarding`, `environment="..."`):
  they hold without further ado.

Every other one makes its line unusable. An option that is passed over might have been
the one that keeps somebody out.

As in sshd, they count from left to right: `restrict,port-forwarding` may forward. One
thing is stricter than there: `permitlisten` says all that may be listened on, so that
a line with it may have no socket paths.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from rtunnel.addresses import LAST_PORT
from rtunnel.errors import ConfigError
from rtunnel.gateway.certificates import BadCertificate, UserCertificate, is_certificate
from rtunnel.gateway.settings import is_in, parse_networks
from rtunnel.ssh.known_hosts import fingerprint
from rtunnel.ssh.patterns import match_pattern

log = logging.getLogger("rtunnel.gateway.authorized_keys")

KEY_TYPES: Final = frozenset(
    {
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "ssh-rsa",
    }
)
# Other types that sshd knows: a line that begins with one has no options.
_FOREIGN_TYPES: Final = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+")

# About things that the gateway gives to nobody.
MOOT_OPTIONS: Final = frozenset(
    {
        *("user-rc", "no-user-rc", "x11-forwarding", "no-x11-forwarding"),
        *("environment", "tunnel"),
    }
)

# So that another file, named by mistake, is not read to its end at each login.
FILE_BYTES_MAX: Final = 1 << 20

_OPTION: Final = re.compile(
    r"""(?P<name>[A-Za-z0-9-]+) (?:="(?P<value>(?:\\"|[^"])*)")? (?P<end>,|\s+)""",
    re.VERBOSE,
)


class _Unusable(Exception):
    """A line says something that is wrong, or not understood; the text says what."""


@dataclass(frozen=True, slots=True)
class Permit:
    """One `permitlisten` or `permitopen`: a pattern for the address, and a port (None:
    any)."""

    address: str
    port: int | None

    def matches(self, address: str, port: int) -> bool:
        """Return whether the address and port, as the client asks for them, match."""
        return (self.port is None or self.port == port) and match_pattern(
            address.lower(), self.address
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """A `from`: networks and patterns for the client's address; `!` excludes."""

    text: str

    def __post_init__(self) -> None:
        for part in self.text.split(","):
            if not part.strip().lstrip("!"):
                raise ConfigError("an entry is empty")
            if "/" in part:
                parse_networks([part.strip().lstrip("!")])

    def allow(self, address: str) -> bool:
        """Return whether a client may come from there."""
        allowed = False
        for part in self.text.split(","):
            part = part.strip()
            pattern = part.removeprefix("!").lower()
            if (
                is_in(address, parse_networks([pattern]))
                if "/" in pattern
                else (match_pattern(address.lower(), pattern))
            ):
                if part.startswith("!"):
                    return False
                allowed = True
        return allowed


@dataclass(frozen=True, slots=True)
class AuthorizedKey:
    """A key that may log in, and what it may do then."""

    blob: bytes
    place: str
    may_forward: bool = True
    permit_listen: tuple[Permit, ...] = ()
    permit_open: tuple[Permit, ...] = ()
    may_have_session: bool = True
    may_have_pty: bool = True
    may_forward_agent: bool = True
    sources: Sources | None = None
    expires_s: float | None = None
    # Only for a certificate authority. No principals: the user's name.
    is_authority: bool = False
    principals: tuple[str, ...] = ()
    # Who it is, on whatever connection: what the client is known by.
    identity: tuple[object, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """The key as ssh-keygen shows it."""
        return fingerprint(self.blob)

    def why_not_now(self, address: str, now_s: float) -> str | None:
        """Return why this key may not log in from there now; None: it may."""
        if self.expires_s is not None and now_s >= self.expires_s:
            return "it has expired"
        if self.sources is not None and not self.sources.allow(address):
            return f"it may not be used from {address or 'a place without an address'}"
        return None

    def why_not_tcp(self, address: str, port: int) -> str | None:
        """Return why this key may not listen there, as asked for; None: it may."""
        if not self.may_forward:
            return "port forwarding is disabled for this key"
        if self.permit_listen and not any(
            permit.matches(address, port) for permit in self.permit_listen
        ):
            return f"port {port} is disabled for this key by permitlisten"
        return None

    def why_not_unix(self) -> str | None:
        """Return why this key may not listen on a socket path; None: it may."""
        if not self.may_forward:
            return "forwarding is disabled for this key"
        if self.permit_listen:
            return "socket paths are disabled for this key by permitlisten"
        return None

    def may_open(self, host: str, port: int) -> bool:
        """Return whether this key may connect there through the gateway."""
        return self.may_forward and (
            not self.permit_open
            or any(permit.matches(host, port) for permit in self.permit_open)
        )


class AuthorizedKeys:
    """The lines that were given, and those of files, which are read anew if changed.

    `find` may be called from any thread.
    """

    def __init__(self, sources: Sequence[str | Path]) -> None:
        """Take lines (str) and files (Path). Raises `ConfigError` about a file."""
        lines = [
            line
            for text in sources
            if isinstance(text, str)
            for line in text.splitlines()
        ]
        self._given = _parse_all(lines, "authorized key")
        self._files = [_File(path) for path in sources if isinstance(path, Path)]
        if not sources:
            raise ConfigError("a gateway without authorized keys would serve nobody")
        for file in self._files:
            file.keys()

    def find(
        self, blob: bytes, user: str = "", address: str = ""
    ) -> AuthorizedKey | None:
        """Return the first line that lets this key, or certificate, in; or None.

        `address` is where the client comes from. May read files.
        """
        certificate: UserCertificate | None = None
        if is_certificate(blob):
            try:
                certificate = UserCertificate.read(blob)
            except BadCertificate as error:
                log.warning("refused a certificate: user=%r reason=%s", user, error)
                return None
        wanted = blob if certificate is None else certificate.authority
        now_s = time.time()
        for key in self._all():
            if key.blob != wanted or key.is_authority != (certificate is not None):
                continue
            reason = key.why_not_now(address, now_s)
            if reason is None and certificate is None:
                return replace(key, identity=(blob,))
            if reason is None and certificate is not None:
                try:
                    return _certified(key, certificate, user, address, now_s)
                except BadCertificate as error:
                    reason = f"the certificate {certificate}: {error}"
            log.warning(
                "refused a key: user=%r at=%r reason=%s", user, key.place, reason
            )
        return None

    def _all(self) -> Iterable[AuthorizedKey]:
        yield from self._given
        for file in self._files:
            try:
                yield from file.keys()
            except ConfigError as error:
                log.error("%s", error)


def _certified(
    line: AuthorizedKey,
    certificate: UserCertificate,
    user: str,
    address: str,
    now_s: float,
) -> AuthorizedKey:
    """Return what a certificate gives its owner by this line. Raises BadCertificate."""
    certificate.check(line.principals or (user,), address, now_s)
    return replace(
        line,
        blob=certificate.key,
        place=f"{line.place}, certificate {certificate}",
        may_forward=line.may_forward and certificate.has("permit-port-forwarding"),
        may_have_session=line.may_have_session and not certificate.has_command,
        may_have_pty=line.may_have_pty and certificate.has("permit-pty"),
        may_forward_agent=(
            line.may_forward_agent and certificate.has("permit-agent-forwarding")
        ),
        # Its key may be a new one each day.
        identity=(certificate.authority, certificate.key_id),
    )


class _File:
    """One file: parsed when it has changed, so that each line is complained of once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parsed: tuple[object, list[AuthorizedKey]] = (None, [])

    def keys(self) -> list[AuthorizedKey]:
        try:
            with self.path.open("rb") as file:
                info = os.fstat(file.fileno())
                version = (info.st_ino, info.st_size, info.st_mtime_ns)
                if self._parsed[0] == version:
                    return self._parsed[1]
                _check_owner(self.path, info)
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(
                f"cannot read authorized keys from {self.path}: {error.strerror}"
            ) from error
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{self.path} is too large to hold authorized keys")
        lines = data.decode("utf-8", "replace").splitlines()
        keys = _parse_all(lines, f"{self.path} line")
        # One assignment: another thread sees the old pair or the new one.
        self._parsed = (version, keys)
        return keys


def _check_owner(path: Path, info: os.stat_result) -> None:
    """Refuse a file that others may have written, as StrictModes of sshd does."""
    if info.st_uid not in (0, os.getuid()):
        raise ConfigError(
            f"{path} belongs to somebody else, who could authorize any key: "
            "it must be yours, or root's"
        )
    if stat.S_IMODE(info.st_mode) & 0o022:
        raise ConfigError(
            f"others can write to {path}, and so authorize any key: "
            f"run: chmod go-w {path}"
        )


def _parse_all(lines: Iterable[str], place: str) -> list[AuthorizedKey]:
    keys = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            keys.append(parse_line(line, f"{place} {number}"))
        except _Unusable as problem:
            log.warning(
                "%s %d is unusable, its key cannot log in: %s", place, number, problem
            )
    return keys


# What grants and what takes away: the field of `AuthorizedKey` that says so.
_SWITCHES: Final = {
    "port-forwarding": "may_forward",
    "pty": "may_have_pty",
    "agent-forwarding": "may_forward_agent",
}


def parse_line(line: str, place: str) -> AuthorizedKey:
    """Read one line; `place` is its name in logs."""
    options: list[tuple[str, str | None]] = []
    if not _FOREIGN_TYPES.fullmatch(line.split(None, 1)[0]):
        options, line = _split_options(line)
    key = AuthorizedKey(_parse_key(line), place)
    for name, value in options:
        key = _with_option(key, name, value)
    if key.principals and not key.is_authority:
        raise _Unusable("principals belong to a cert-authority")
    return key


def _with_option(key: AuthorizedKey, name: str, value: str | None) -> AuthorizedKey:
    switch = _SWITCHES.get(name.removeprefix("no-"))
    if value is None:
        if name == "restrict":
            off: dict[str, Any] = dict.fromkeys(_SWITCHES.values(), False)
            return replace(key, **off)
        if switch is not None:
            on: dict[str, Any] = {switch: not name.startswith("no-")}
            return replace(key, **on)
        if name == "cert-authority":
            return replace(key, is_authority=True)
    elif name == "permitlisten":
        permit = _parse_permit(name, value)
        return replace(key, permit_listen=(*key.permit_listen, permit))
    elif name == "permitopen":
        permit = _parse_permit(name, value)
        return replace(key, permit_open=(*key.permit_open, permit))
    elif name == "command":
        return replace(key, may_have_session=False)
    elif name == "expiry-time":
        return replace(key, expires_s=_earlier(key.expires_s, _parse_time(value)))
    elif name == "from" and key.sources is None:
        try:
            return replace(key, sources=Sources(value))
        except ConfigError as error:
            raise _Unusable(f'from="{value}": {error}') from None
    elif name == "principals":
        names = tuple(filter(None, value.split(",")))
        if not names:
            raise _Unusable("principals are empty")
        return replace(key, principals=names)
    if name not in MOOT_OPTIONS:
        raise _Unusable(f"the option {name!r} is not understood here")
    return key


def _earlier(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)


def _parse_time(text: str) -> float:
    """Read a time as sshd does: of this machine's time zone, unless it ends in Z."""
    digits = text.removesuffix("Z")
    pattern = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    try:
        if pattern is None or not (digits.isdecimal() and digits.isascii()):
            raise ValueError
        when = datetime.strptime(digits, pattern)
        if text.endswith("Z"):
            when = when.replace(tzinfo=UTC)
        return when.timestamp()
    except (ValueError, OverflowError):
        raise _Unusable(
            f'expiry-time="{text}": expected YYYYMMDD[HHMM[SS]][Z]'
        ) from None


def _split_options(line: str) -> tuple[list[tuple[str, str | None]], str]:
    """Split the options from what follows them."""
    options = []
    at = 0
    while True:
        match = _OPTION.match(line, at)
        if match is None:
            raise _Unusable(f"cannot understand the options at {line[at : at + 20]!r}")
        value = match["value"]
        options.append(
            (
                match["name"].lower(),
                None if value is None else value.replace('\\"', '"'),
            )
        )
        at = match.end()
        if match["end"] != ",":
            return options, line[at:]


def _parse_key(text: str) -> bytes:
    fields = text.split(None, 2)
    if len(fields) < 2:
        raise _Unusable("expected [options] key-type base64-key [comment]")
    if fields[0] not in KEY_TYPES:
        raise _Unusable(f"keys of the type {fields[0]!r} cannot be used here")
    try:
        blob = base64.b64decode(fields[1], validate=True)
        # Reads the key to its end, and compares its type with that before it.
        load_ssh_public_key(" ".join(fields[:2]).encode())
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        raise _Unusable(f"its {fields[0]} key is damaged") from None
    return blob


def _parse_permit(option: str, text: str) -> Permit:
    address, colon, port = text.rpartition(":")
    if not colon and option == "permitlisten":
        # A bare port is for every address, as in sshd.
        address = "*"
    elif address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if port == "*" and address:
        return Permit(address.lower(), None)
    if not address or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > LAST_PORT:
        expected = "[host:]port" if option == "permitlisten" else "host:port"
        raise _Unusable(f'{option}="{text}": expected {expected}')
    return Permit(address.lower(), int(port))
