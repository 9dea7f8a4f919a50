"""The gateway's own key: read from a file, or made when there is none yet."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import paramiko
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from rtunnel.errors import ConfigError
from rtunnel.ssh.keys import KeyFileError, PrivateKey, read_key_file

_CLASSES: Final[dict[type[PrivateKey], Any]] = {
    ed25519.Ed25519PrivateKey: paramiko.Ed25519Key,
    ec.EllipticCurvePrivateKey: paramiko.ECDSAKey,
    rsa.RSAPrivateKey: paramiko.RSAKey,
}


def load_or_make(path: Path | None) -> paramiko.PKey:
    """Return the host key in `path`; make one there if there is none.

    A new one is ed25519, its file has mode 0600. Without a path it is made for this
    time only, in memory. Raises `ConfigError`.
    """
    if path is None:
        return _server_key(ed25519.Ed25519PrivateKey.generate())
    try:
        try:
            key = read_key_file(path).unlock(None)
        except FileNotFoundError:
            _make(path)
            key = read_key_file(path).unlock(None)
    except (KeyFileError, OSError) as error:
        raise ConfigError(f"cannot use the host key {path}: {error}") from error
    return _server_key(key)


def _server_key(key: PrivateKey) -> paramiko.PKey:
    file = io.StringIO(_private_text(key).decode())
    for kind, server_class in _CLASSES.items():
        if isinstance(key, kind):
            made: paramiko.PKey = server_class.from_private_key(file)
            return made
    raise AssertionError("unreachable: every kind of PrivateKey is in the table")


def _private_text(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _make(path: Path) -> None:
    """Write a new key: whole or not at all, and only one if two gateways start."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes it for the owner only (0600).
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_private_text(ed25519.Ed25519PrivateKey.generate()))
            file.flush()
            os.fsync(file.fileno())
        # If the other was faster, its key is the one to use.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
