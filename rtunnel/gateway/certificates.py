"""Certificates of users (PROTOCOL.certkeys of OpenSSH): a key, and who vouches for it.

Reading one and checking its signature is the same as for hosts; what it must say is
not. A critical option that is not understood makes it worthless, as the format
demands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import (
    SSHCertificate,
    SSHCertificateType,
)

from rtunnel.errors import ConfigError, ProtocolError
from rtunnel.gateway.settings import is_in, parse_networks
from rtunnel.ssh.host_certificates import (
    CERTIFICATE_SUFFIX,
    BadCertificate,
    read_host_certificate,
)
from rtunnel.wire import Reader

__all__ = ["CERTIFICATE_SUFFIX", "BadCertificate", "UserCertificate", "is_certificate"]

FORCE_COMMAND: Final = b"force-command"
SOURCE_ADDRESS: Final = b"source-address"


def is_certificate(blob: bytes) -> bool:
    """Say whether the public key that a client shows is a certificate."""
    try:
        return Reader(blob).text().endswith(CERTIFICATE_SUFFIX)
    except ProtocolError:
        return False


@dataclass(frozen=True, slots=True)
class UserCertificate:
    """A certificate whose signature is right: who signed it, and for which key."""

    authority: bytes
    key: bytes
    certificate: SSHCertificate

    @staticmethod
    def read(blob: bytes) -> UserCertificate:
        """Read a certificate as a client shows it. Raises `BadCertificate`."""
        found = read_host_certificate(blob)
        return UserCertificate(found.authority, found.host_key, found.certificate)

    def __str__(self) -> str:
        name = self.key_id.decode("utf-8", "replace")
        return f"{name!r} serial {self.certificate.serial}"

    @property
    def key_id(self) -> bytes:
        """The name that its authority has given to it."""
        return self.certificate.key_id

    @property
    def has_command(self) -> bool:
        """Whether it forces a command."""
        return FORCE_COMMAND in self.certificate.critical_options

    def has(self, extension: str) -> bool:
        """Say whether it grants something, such as `permit-port-forwarding`."""
        return extension.encode() in self.certificate.extensions

    def check(self, principals: tuple[str, ...], address: str, now_s: float) -> None:
        """Return if it is for one of these, from this address, at this time.

        Raises `BadCertificate`.
        """
        certificate = self.certificate
        if certificate.type is not SSHCertificateType.USER:
            raise BadCertificate("it is a host's certificate, not a user's")
        if now_s < certificate.valid_after:
            raise BadCertificate("it is not valid yet; is the clock right?")
        if now_s >= certificate.valid_before:
            raise BadCertificate("it has expired")
        unknown = set(certificate.critical_options) - {FORCE_COMMAND, SOURCE_ADDRESS}
        if unknown:
            names = b", ".join(sorted(unknown)).decode("utf-8", "replace")
            raise BadCertificate(f"it has critical options that are not known: {names}")
        # As in sshd, one without principals is for nobody.
        valid = {
            name.decode("utf-8", "replace") for name in certificate.valid_principals
        }
        if not valid.intersection(principals):
            raise BadCertificate(f"it is not for {', '.join(principals)}")
        sources = certificate.critical_options.get(SOURCE_ADDRESS)
        if sources is None:
            return
        try:
            networks = parse_networks(sources.decode("ascii", "replace").split(","))
        except ConfigError as error:
            raise BadCertificate(f"its source-address is unusable: {error}") from None
        if not is_in(address, networks):
            raise BadCertificate(f"it may not be used from {address}")
