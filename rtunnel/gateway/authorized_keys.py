"""Who may use the gateway, and for what: lines of authorized_keys (sshd(8)).

    [options] key-type base64-key [comment]

`options` is a list of words separated by commas; a value stands in double quotes, in
which `\\"` is a quote. Three kinds of options are understood:

* those about forwarding, which is all there is here: `restrict`, `port-forwarding`,
  `no-port-forwarding`, `permitlisten="[host:]port"`;
* those that limit or grant what nobody gets here anyway (`no-pty`, `command="..."`,
  `permitopen="..."`): they hold without further ado;
* every other one makes its line unusable. An option that is passed over might have
  been the one that keeps somebody out.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from rtunnel.addresses import LAST_PORT
from rtunnel.errors import ConfigError
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
        *("agent-forwarding", "no-agent-forwarding", "pty", "no-pty"),
        *("user-rc", "no-user-rc", "x11-forwarding", "no-x11-forwarding"),
        *("command", "environment", "permitopen", "tunnel"),
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
class PermitListen:
    """One `permitlisten`: a pattern for the address, and a port (None: any)."""

    address: str
    port: int | None

    def matches(self, address: str, port: int) -> bool:
        """Return whether the address and port, as the client asks for them, match."""
        return (self.port is None or self.port == port) and match_pattern(
            address.lower(), self.address
        )


@dataclass(frozen=True, slots=True)
class AuthorizedKey:
    """A key that may log in, and what it may do then."""

    blob: bytes
    place: str
    may_forward: bool = True
    permit_listen: tuple[PermitListen, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The key as ssh-keygen shows it."""
        return fingerprint(self.blob)

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

    def find(self, blob: bytes) -> AuthorizedKey | None:
        """Return the first line with this key, or None. May read files."""
        for key in self._given:
            if key.blob == blob:
                return key
        for file in self._files:
            try:
                keys = file.keys()
            except ConfigError as error:
                log.error("%s", error)
                continue
            for key in keys:
                if key.blob == blob:
                    return key
        return None


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


def parse_line(line: str, place: str) -> AuthorizedKey:
    """Read one line; `place` is its name in logs."""
    options: list[tuple[str, str | None]] = []
    if not _FOREIGN_TYPES.fullmatch(line.split(None, 1)[0]):
        options, line = _split_options(line)
    blob = _parse_key(line)
    may_forward = True
    permits = []
    for name, value in options:
        if name in ("restrict", "no-port-forwarding") and value is None:
            may_forward = False
        elif name == "port-forwarding" and value is None:
            may_forward = True
        elif name == "permitlisten" and value is not None:
            permits.append(_parse_permit(value))
        elif name not in MOOT_OPTIONS:
            raise _Unusable(f"the option {name!r} is not understood here")
    return AuthorizedKey(blob, place, may_forward, tuple(permits))


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


def _parse_permit(text: str) -> PermitListen:
    address, colon, port = text.rpartition(":")
    if not colon:
        # A bare port is for every address, as in sshd.
        address = "*"
    elif address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if port == "*" and address:
        return PermitListen(address.lower(), None)
    if not address or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > LAST_PORT:
        raise _Unusable(f'permitlisten="{text}": expected [host:]port')
    return PermitListen(address.lower(), int(port))
