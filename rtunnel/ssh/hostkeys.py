"""Decide whether a server is who it should be (ssh_config(5), StrictHostKeyChecking).

The order of questions, which is that of ssh(1):

1. Is the key, or the authority of its certificate, marked `@revoked` for this host?
   Refuse, whatever else is known.
2. Does a `@cert-authority` line for this host vouch for the certificate? Accept.
   Else a certificate counts as the plain key that is in it.
3. Does a line for this host have this key? Accept.
4. Does a line for this host have another key? The host key has changed: refuse. There
   is no policy to accept that. Where ssh(1) goes on with `StrictHostKeyChecking no`,
   it switches forwarding off, and forwarding is what a tunnel is for.
5. The host is not known: the policy decides.

One thing is stricter than in ssh(1): where the policy accepts what is not known, a
server that shows a key of another type than those known for it counts as changed. The
known types are offered first, so a server that still has such a key shows it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from typing import Final

from paramiko import Message, PKey

from rtunnel.errors import HostKeyChanged, HostKeyRevoked, HostKeyUnknown
from rtunnel.ssh.config import SSH_PORT
from rtunnel.ssh.host_certificates import (
    CERTIFICATE_SUFFIX,
    BadCertificate,
    read_host_certificate,
)
from rtunnel.ssh.known_hosts import (
    KnownHost,
    Marker,
    add_known_host,
    fingerprint,
    known_name,
    read_known_hosts,
)
from rtunnel.ssh.options import (
    HostConfig,
    HostKeyPolicy,
    HostKeyPrompt,
    HostKeyQuestion,
)

log = logging.getLogger(__name__)

# HostKeyAlgorithms of ssh_config(5), without those that paramiko cannot verify. SHA-1
# (ssh-rsa) and DSA are not among them, as in OpenSSH since 8.8.
HOST_KEY_ALGORITHMS: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
_ACCEPTING: Final = (HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.ACCEPT)


class HostKeyChecker:
    """What known_hosts says about one host; reads the files once, when made.

    Raises `ConfigError` for a file that cannot be read.
    """

    def __init__(self, config: HostConfig, prompt: HostKeyPrompt | None = None) -> None:
        self._config = config
        self._prompt = prompt
        self._host = (config.host_key_alias or config.host).lower()
        self._name = (
            self._host
            if config.host_key_alias
            else known_name(config.host, config.port)
        )
        self._lines = read_known_hosts(
            (*config.user_known_hosts, *config.global_known_hosts)
        )
        self._matching = [line for line in self._lines if line.matches(self._name)]
        # As in ssh(1): a key that is known without a port is good for any port. It
        # makes a host known, never changed.
        self._portless = (
            [line for line in self._lines if line.matches(self._host)]
            if self._name != self._host
            else []
        )

    def algorithms(self) -> tuple[str, ...]:
        """Return the host key algorithms to offer, those that can be verified first."""
        lines = self._matching + self._portless
        known = {line.key_type for line in lines if line.marker is Marker.HOST_KEY}
        plain = sorted(
            HOST_KEY_ALGORITHMS,
            key=lambda name: _key_type(name) not in known,  # keeps their order
        )
        if any(line.marker is Marker.CERT_AUTHORITY for line in lines):
            return tuple(name + CERTIFICATE_SUFFIX for name in plain) + tuple(plain)
        return tuple(plain)

    def check(self, key: PKey) -> None:
        """Return if the key may be trusted; may ask, and write to known_hosts.

        Raises `HostKeyRevoked`, `HostKeyChanged` or `HostKeyUnknown`.
        """
        # paramiko keeps a certificate beside the plain key that it took out of it.
        public = getattr(key, "public_blob", None)
        if public is not None and self._check_certificate(bytes(public.key_blob)):
            return
        blob = key.asbytes()
        self._refuse_revoked(blob, "its host key")
        keys = [line for line in self._matching if line.marker is Marker.HOST_KEY]
        for line in (*keys, *self._portless):
            if line.marker is Marker.HOST_KEY and line.blob == blob:
                log.debug("%s: host key found at %s", self._name, line.place)
                return
        same_type = [line for line in keys if line.key_type == _blob_type(blob)]
        if same_type:
            raise self._changed(blob, same_type)
        if keys and self._config.host_key_policy in _ACCEPTING:
            raise self._changed(blob, keys)
        self._unknown(blob, keys)

    def _check_certificate(self, blob: bytes) -> bool:
        """Return whether an authority of this host vouches for the certificate."""
        try:
            certificate = read_host_certificate(blob)
            self._refuse_revoked(certificate.authority, "the authority of its key")
            self._refuse_revoked(certificate.host_key, "its host key")
            for line in self._matching + self._portless:
                if (
                    line.marker is Marker.CERT_AUTHORITY
                    and line.blob == certificate.authority
                ):
                    certificate.check(self._host)
                    log.debug("%s: host certificate, %s", self._name, line.place)
                    return True
            log.debug("%s: no authority here for its certificate", self._name)
        except BadCertificate as error:
            # As in ssh(1), the key that is in it may still be known.
            log.warning(
                "host certificate of %s is not used: %s", self._name, str(error)
            )
        return False

    def _refuse_revoked(self, blob: bytes, what: str) -> None:
        for line in self._matching + self._portless:
            if line.marker is Marker.REVOKED and line.blob == blob:
                raise HostKeyRevoked(
                    f"{self._name}: {what} ({line.fingerprint}) is marked as revoked "
                    f"at {line.place}: somebody else may have it. Ask the server's "
                    "administrator for the new key; do not connect with this one"
                )

    def _changed(self, blob: bytes, lines: Sequence[KnownHost]) -> HostKeyChanged:
        path = lines[0].path
        known = "; ".join(
            f"{line.place} has {line.key_type} {line.fingerprint}" for line in lines
        )
        return HostKeyChanged(
            f"the host key of {self._name} has changed: the server shows "
            f"{_blob_type(blob)} {fingerprint(blob)}, but {known}. Either somebody "
            "stands between you and the server, or its keys were made anew. Only if "
            "you know the latter, remove the old key: ssh-keygen -R "
            f"{shlex.quote(self._name)} -f {shlex.quote(str(path))}"
        )

    def _unknown(self, blob: bytes, others: Sequence[KnownHost]) -> None:
        policy = self._config.host_key_policy
        files = self._config.user_known_hosts
        key_type = _blob_type(blob)
        if policy is HostKeyPolicy.ASK and self._prompt is not None and files:
            question = HostKeyQuestion(
                self._name, key_type, fingerprint(blob), str(files[0])
            )
            if not self._prompt(question):
                raise HostKeyUnknown(
                    f"the host key of {self._name} ({key_type} {fingerprint(blob)}) "
                    "was not accepted"
                )
        elif policy in (HostKeyPolicy.STRICT, HostKeyPolicy.ASK):
            raise self._unknown_error(blob, others)
        self._add(key_type, blob)

    def _unknown_error(
        self, blob: bytes, others: Sequence[KnownHost]
    ) -> HostKeyUnknown:
        config = self._config
        key_type = _blob_type(blob)
        files = (*config.user_known_hosts, *config.global_known_hosts)
        looked = (
            "; ".join(f"{line.place} has only {line.key_type}" for line in others)
            if others
            else f"no line of {', '.join(map(str, files)) or 'any file'} is about it"
        )
        port = "" if config.port == SSH_PORT else f"-p {config.port} "
        path = config.user_known_hosts[0] if config.user_known_hosts else "FILE"
        short = key_type.removeprefix("ssh-").partition("-")[0]
        add = f"ssh-keyscan -t {short} {port}{config.host} >> {shlex.quote(str(path))}"
        if config.host_key_alias:
            add += f" (and name it {config.host_key_alias} there)"
        return HostKeyUnknown(
            f"the host key of {self._name} is not known: {key_type} "
            f"{fingerprint(blob)}; {looked}. Compare the fingerprint with what "
            "`ssh-keygen -lf` shows for /etc/ssh/ssh_host_*_key.pub on the server; if "
            f"it is the same, add it: {add}"
        )

    def _add(self, key_type: str, blob: bytes) -> None:
        if not self._config.user_known_hosts:
            return
        path = self._config.user_known_hosts[0]
        hashed = self._config.hash_known_hosts
        try:
            add_known_host(path, self._name, key_type, blob, hashed=hashed)
        except OSError as error:
            # As in ssh(1): the connection stands on this key, remembered or not.
            log.warning(
                "cannot add the key of %s to %s: %s", self._name, path, error.strerror
            )
        else:
            log.info(
                "added the key of %s (%s %s) to %s",
                self._name,
                key_type,
                fingerprint(blob),
                path,
            )


def _key_type(algorithm: str) -> str:
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def _blob_type(blob: bytes) -> str:
    return Message(blob).get_string().decode("ascii", "replace")
