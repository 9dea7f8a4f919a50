"""Users' keys: read them from files, and sign with them.

Files are read by `cryptography`: OpenSSH's own format, PEM (PKCS#1, SEC1) and PKCS#8,
encrypted or not. The public half is looked for first, because a server is asked
whether it would take a key before anyone is asked for a passphrase: in the private
file where that tells (OpenSSH's format does, even encrypted), else in `FILE.pub`.

A signature has the format of RFC 4253, section 6.6 (RSA: RFC 8332, never SHA-1).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from paramiko import Message

from rtunnel.ssh.host_certificates import CERTIFICATE_SUFFIX

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

KEY_FILE_BYTES_MAX: Final = 1 << 20  # MAX_KEY_FILE_SIZE of OpenSSH
_OPENSSH: Final = re.compile(
    rb"-----BEGIN OPENSSH PRIVATE KEY-----\s(.*?)-----END", re.DOTALL
)
_OPENSSH_MAGIC: Final = b"openssh-key-v1\0"
_ENCRYPTED_PEM: Final = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")
_EC_HASHES: Final[dict[str, Callable[[], hashes.HashAlgorithm]]] = {
    "nistp256": hashes.SHA256,
    "nistp384": hashes.SHA384,
    "nistp521": hashes.SHA512,
}
_RSA_HASHES: Final[dict[str, Callable[[], hashes.HashAlgorithm]]] = {
    "rsa-sha2-256": hashes.SHA256,
    "rsa-sha2-512": hashes.SHA512,
}


class KeyFileError(Exception):
    """A key file cannot be used; the text says why, without its path."""


class WrongPassphrase(KeyFileError):
    """The passphrase is not the one of this file."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key as it stands in a file; its private half may be locked or elsewhere."""

    path: Path
    data: bytes  # what the private file holds; empty where only FILE.pub is here
    blob: bytes | None  # the public half, where it can be seen
    encrypted: bool

    def unlock(self, passphrase: str | None) -> PrivateKey:
        """Return the private key.

        Raises `WrongPassphrase` and `KeyFileError`.
        """
        secret = passphrase.encode() if self.encrypted and passphrase else None
        load = load_ssh_private_key if _OPENSSH.search(self.data) else None
        try:
            key = (load or load_pem_private_key)(self.data, secret)
        except (UnsupportedAlgorithm, NotImplementedError) as error:
            raise KeyFileError(f"it cannot be read here: {error}") from None
        except (ValueError, TypeError):
            # The text of these errors is about parsers: of no use to a person who named
            # another file, or mistyped.
            if self.encrypted:
                raise WrongPassphrase("the passphrase is wrong") from None
            raise KeyFileError(
                "it is not a private key in the format of OpenSSH or PEM"
            ) from None
        if not isinstance(key, PrivateKey):
            raise KeyFileError(f"{type(key).__name__} is not a kind of key used here")
        return key


def read_key_file(path: Path) -> KeyFile:
    """Read a private key file, or a public one whose private half an agent has.

    Raises `KeyFileError`; `FileNotFoundError` where there is neither.
    """
    try:
        data = _read(path)
    except FileNotFoundError:
        return KeyFile(path, b"", read_public_file(_beside(path, ".pub")), False)
    public = _public_of_line(data)
    if public is not None:
        return KeyFile(path, b"", public, False)
    _check_mode(path)
    match = _OPENSSH.search(data)
    if match is not None:
        blob, encrypted = _public_of_openssh(match[1])
        return KeyFile(path, data, blob, encrypted)
    encrypted = any(mark in data for mark in _ENCRYPTED_PEM)
    if not encrypted:
        key = KeyFile(path, data, None, False).unlock(None)
        return KeyFile(path, data, public_blob(key), False)
    try:
        blob = read_public_file(_beside(path, ".pub"))
    except (KeyFileError, FileNotFoundError):
        blob = None
    return KeyFile(path, data, blob, True)


def read_public_file(path: Path) -> bytes:
    """Return the public key, or certificate, in a `.pub` file, as the wire has it.

    Raises `KeyFileError` and `FileNotFoundError`.
    """
    blob = _public_of_line(_read(path))
    if blob is None:
        raise KeyFileError("it is not a public key")
    return blob


def certificate_of(path: Path) -> Path:
    """Return where ssh(1) looks for the certificate of a key file."""
    return _beside(path, "-cert.pub")


def certified_key(certificate: bytes) -> bytes | None:
    """Return the public key in a certificate; None if it is not a user certificate."""
    kind = key_type(certificate)
    if not kind.endswith(CERTIFICATE_SUFFIX):
        return None
    kind = kind.removesuffix(CERTIFICATE_SUFFIX)
    message = Message(certificate)
    message.get_string()  # type
    message.get_string()  # nonce
    plain = Message()
    plain.add_string(kind)
    for _ in range({"ssh-ed25519": 1}.get(kind, 2)):
        plain.add_string(message.get_string())
    return plain.asbytes()


def key_type(blob: bytes) -> str:
    """Return the type that a public key or certificate says it has."""
    return Message(blob).get_string().decode("ascii", "replace")


def public_blob(key: PrivateKey) -> bytes:
    """Return the public half as the wire has it (RFC 4253, section 6.6)."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def sign(key: PrivateKey, data: bytes, algorithm: str) -> bytes:
    """Return a signature; `algorithm` says which hash an RSA key uses."""
    signature = Message()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature.add_string("ssh-ed25519")
        signature.add_string(key.sign(data))
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        name = key_type(public_blob(key))
        digest = _EC_HASHES[name.rpartition("-")[2]]()
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        numbers = Message()
        numbers.add_mpint(r)
        numbers.add_mpint(s)
        signature.add_string(name)
        signature.add_string(numbers.asbytes())
    else:
        signature.add_string(algorithm)
        signature.add_string(
            key.sign(data, padding.PKCS1v15(), _RSA_HASHES[algorithm]())
        )
    return signature.asbytes()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"it cannot be read: {error.strerror}") from None
    if len(data) > KEY_FILE_BYTES_MAX:
        raise KeyFileError("it is too large to be a key")
    return data


def _check_mode(path: Path) -> None:
    """Refuse a key of ours that others can read, as ssh(1) does."""
    info = path.stat()
    if info.st_uid == os.getuid() and stat.S_IMODE(info.st_mode) & 0o077:
        raise KeyFileError(f"others can read it; run: chmod 600 {path}")


def _public_of_line(data: bytes) -> bytes | None:
    """Read `type base64 [comment]`; None for anything else."""
    fields = data.split(None, 2)
    if len(fields) < 2:
        return None
    try:
        blob = base64.b64decode(fields[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob if key_type(blob).encode() == fields[0] else None


def _public_of_openssh(text: bytes) -> tuple[bytes | None, bool]:
    """Return the public key in an OpenSSH private file, and whether it is encrypted.

    The header is in the clear (PROTOCOL.key of OpenSSH): magic, cipher, kdf, kdf
    options, number of keys, public keys.
    """
    try:
        data = base64.b64decode(text)
    except (binascii.Error, ValueError):
        return None, False
    if not data.startswith(_OPENSSH_MAGIC):
        return None, False
    message = Message(data[len(_OPENSSH_MAGIC) :])
    cipher = message.get_string()
    message.get_string()
    message.get_string()
    message.get_int()
    return message.get_string() or None, cipher != b"none"
