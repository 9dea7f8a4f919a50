"""Check an OpenSSH host certificate (PROTOCOL.certkeys of OpenSSH).

A certificate is a host's public key, the names it may be used for and how long, signed
by an authority. The signature is checked by `cryptography`; this module decides
whether the certificate is one for this host, now.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)
from paramiko import Message

from rtunnel.ssh.patterns import match_pattern

CERTIFICATE_SUFFIX: Final = "-cert-v01@openssh.com"
# How many strings the public key of each kind has, between nonce and serial number.
_KEY_FIELDS: Final = {"ssh-rsa": 2, "ssh-ed25519": 1}
_ECDSA_KEY_FIELDS: Final = 2
# SHA-1 signatures are not taken from authorities either (CASignatureAlgorithms).
_REFUSED_SIGNATURES: Final = frozenset({"ssh-rsa", "ssh-dss"})


class BadCertificate(Exception):
    """The certificate does not vouch for this host; the text says why."""


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """A host certificate whose signature is right: who signed it, and for which key."""

    authority: bytes
    host_key: bytes
    certificate: SSHCertificate

    def check(self, host: str, now_s: float | None = None) -> None:
        """Return if the certificate is for `host` (lower case) at this time.

        Raises `BadCertificate`.
        """
        certificate = self.certificate
        if certificate.type is not SSHCertificateType.HOST:
            raise BadCertificate("it is a user's certificate, not a host's")
        now_s = time.time() if now_s is None else now_s
        if now_s < certificate.valid_after:
            raise BadCertificate("it is not valid yet; is the clock right?")
        if now_s >= certificate.valid_before:
            raise BadCertificate("it has expired")
        # No critical option is defined for hosts, and unknown ones must be refused.
        if certificate.critical_options:
            raise BadCertificate("it has critical options")
        names = [
            name.decode("utf-8", "replace") for name in certificate.valid_principals
        ]
        # As in ssh(1), a certificate without names is good for every host.
        if names and not any(match_pattern(host, name.lower()) for name in names):
            raise BadCertificate(f"it is for {', '.join(names)}, not for {host}")


def read_host_certificate(blob: bytes) -> HostCertificate:
    """Read a certificate as the server sent it, and check its signature.

    Raises `BadCertificate`.
    """
    try:
        key_type = Message(blob).get_text()
        if _signature_type(blob) in _REFUSED_SIGNATURES:
            raise BadCertificate("it is signed with SHA-1")
        text = key_type.encode() + b" " + base64.b64encode(blob)
        certificate = load_ssh_public_identity(text)
        if not isinstance(certificate, SSHCertificate):
            raise BadCertificate("it is no certificate")
        certificate.verify_cert_signature()
        return HostCertificate(
            _blob(certificate.signature_key()),
            _blob(certificate.public_key()),
            certificate,
        )
    except BadCertificate:
        raise
    except InvalidSignature:
        raise BadCertificate("its signature is wrong") from None
    except Exception as error:
        # The server wrote this, and the parser reports damage in many ways (ValueError,
        # UnsupportedAlgorithm, NotImplementedError, ...). None of them may vouch.
        raise BadCertificate(f"it cannot be read: {error}") from error


def _blob(key: object) -> bytes:
    line: bytes = key.public_bytes(  # type: ignore[attr-defined]
        Encoding.OpenSSH, PublicFormat.OpenSSH
    )
    return base64.b64decode(line.split()[1])


def _signature_type(blob: bytes) -> str:
    """Return the algorithm of the signature, the last field of a certificate."""
    message = Message(blob)
    key_type = message.get_text().removesuffix(CERTIFICATE_SUFFIX)
    message.get_string()  # nonce
    for _ in range(_KEY_FIELDS.get(key_type, _ECDSA_KEY_FIELDS)):
        message.get_string()
    message.get_int64()  # serial number
    message.get_int()  # type
    message.get_string()  # key id
    message.get_string()  # principals
    message.get_int64()  # valid after
    message.get_int64()  # valid before
    for _ in range(4):  # critical options, extensions, reserved, signature key
        message.get_string()
    return Message(message.get_string()).get_text()
