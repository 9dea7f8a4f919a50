"""Read known_hosts files: who vouches for which key, on which line.

The format is that of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT:

    [@marker] hosts key-type base64-key [comment]

`hosts` is a list of patterns (`*`, `?`, `!` to refuse), or one hashed name
(`|1|salt|hmac`). A host on another port than 22 stands as `[host]:port`. The marker
`@cert-authority` says that the key signs host certificates, `@revoked` that it must
not be accepted. Keys are compared as the bytes that came over the wire; nothing here
computes with them. A line that cannot be understood vouches for nobody, and is logged.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from rtunnel.errors import ConfigError
from rtunnel.ssh.config import SSH_PORT
from rtunnel.ssh.patterns import match_list

log = logging.getLogger(__name__)

_HASH_MAGIC: Final = "|1|"
_SALT_BYTES: Final = hashlib.sha1(usedforsecurity=False).digest_size
# So that another program's file, named by mistake, is not read to its end.
FILE_BYTES_MAX: Final = 64 << 20


class Marker(Enum):
    """What a line says about its key."""

    HOST_KEY = ""
    CERT_AUTHORITY = "@cert-authority"
    REVOKED = "@revoked"


@dataclass(frozen=True, slots=True)
class KnownHost:
    """One line of a known_hosts file."""

    path: Path
    line: int
    marker: Marker
    hosts: str
    key_type: str
    blob: bytes

    @property
    def place(self) -> str:
        """Where the line stands, for messages."""
        return f"{self.path} line {self.line}"

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint, as ssh-keygen -l prints it."""
        return fingerprint(self.blob)

    def matches(self, name: str) -> bool:
        """Return whether the line is about `name`, which is in lower case."""
        if self.hosts.startswith(_HASH_MAGIC):
            salt, _, digest = self.hosts[len(_HASH_MAGIC) :].partition("|")
            try:
                expected = base64.b64decode(digest, validate=True)
                made = _hash(base64.b64decode(salt, validate=True), name)
            except (binascii.Error, ValueError):
                return False
            return hmac.compare_digest(made, expected)
        return match_list(name, self.hosts.lower())


def fingerprint(blob: bytes) -> str:
    """Return a key's fingerprint as ssh-keygen shows it: `SHA256:...`."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    return "SHA256:" + digest.rstrip("=")


def known_name(host: str, port: int) -> str:
    """Return the name that known_hosts has for a host and port."""
    return host.lower() if port == SSH_PORT else f"[{host.lower()}]:{port}"


def read_known_hosts(paths: Iterable[Path]) -> list[KnownHost]:
    """Read files in order; one that does not exist has no lines.

    Raises `ConfigError` for a file that exists and cannot be read: going on without
    it would turn a host that is known into one that is not.
    """
    found: list[KnownHost] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        for number, line in enumerate(data.splitlines(), 1):
            known = _parse(path, number, line.decode("utf-8", "replace").strip())
            if known is not None:
                found.append(known)
    return found


def add_known_host(
    path: Path, name: str, key_type: str, blob: bytes, *, hashed: bool
) -> None:
    """Append a line to a file, which is made where it does not exist (mode 0600).

    Raises `OSError`.
    """
    if hashed:
        salt = os.urandom(_SALT_BYTES)
        name = "|".join(
            [
                "",
                "1",
                base64.b64encode(salt).decode(),
                base64.b64encode(_hash(salt, name)).decode(),
            ]
        )
    line = f"{name} {key_type} {base64.b64encode(blob).decode()}\n"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "rb+", buffering=0) as file:
        if file.seekable() and file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        # One write, so that two processes that add at once do not mix their lines.
        data = line.encode()
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _hash(salt: bytes, name: str) -> bytes:
    return hmac.digest(salt, name.encode(), "sha1")


def _parse(path: Path, number: int, line: str) -> KnownHost | None:
    if not line or line.startswith("#"):
        return None
    fields = line.split()
    try:
        marker = Marker(fields.pop(0)) if line.startswith("@") else Marker.HOST_KEY
        hosts, key_type, text = fields[:3]
        blob = base64.b64decode(text, validate=True)
    except ValueError:  # an unknown marker, too few fields, not base64
        log.info("%s line %d is not understood; it is ignored", path, number)
        return None
    # The blob begins with its own type (RFC 4253, section 6.6): a line that says
    # another one was damaged.
    if blob[4 : 4 + int.from_bytes(blob[:4])] != key_type.encode():
        log.info("%s line %d: the key is not a %s key", path, number, key_type)
        return None
    # A disk that was full cuts a line where it likes: half a key would make the whole
    # one a host key that has changed.
    if not _is_whole(blob):
        log.info("%s line %d: the key is cut off", path, number)
        return None
    return KnownHost(path, number, marker, hosts, key_type, blob)


def _is_whole(blob: bytes) -> bool:
    """Return whether a key consists of strings and nothing else (RFC 4253, 6.6)."""
    at = 0
    while at < len(blob):
        at += 4 + int.from_bytes(blob[at : at + 4])
    return at == len(blob) and at > 4 + int.from_bytes(blob[:4])
