"""Find the keys to offer to a server, in ssh(1)'s order.

A certificate comes before the plain key that is in it. Among keys, those that the
agent has and a configured file names come first, then the agent's other keys (unless
IdentitiesOnly), then the files that the agent has not. Servers allow few attempts
(MaxAuthTries), so the order decides whether the right key is reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rtunnel.ssh.agent import Agent, AgentError, AgentKey
from rtunnel.ssh.host_certificates import CERTIFICATE_SUFFIX
from rtunnel.ssh.keys import (
    KeyFile,
    KeyFileError,
    PrivateKey,
    WrongPassphrase,
    certificate_of,
    certified_key,
    key_type,
    public_blob,
    read_key_file,
    read_public_file,
    sign,
)
from rtunnel.ssh.known_hosts import fingerprint
from rtunnel.ssh.options import HostConfig, Secret

log = logging.getLogger(__name__)

RSA_ALGORITHMS: Final = ("rsa-sha2-512", "rsa-sha2-256")


class CannotSign(Exception):
    """An identity turned out to be of no use; the text says why."""


@dataclass(slots=True)
class Identity:
    """A public key or certificate, and something that signs for it."""

    name: str
    blob: bytes | None  # what is shown to the server; None until the file is unlocked
    sign: Callable[[bytes, str], bytes]  # (data, algorithm), may raise CannotSign
    # Whether signing may need a person, so that the server is asked first.
    asks: bool
    unlock: Callable[[], bytes] | None = None  # for `blob` None: returns it

    def __str__(self) -> str:
        if self.blob is None:
            return self.name
        kind = key_type(self.blob).removesuffix("-v01@openssh.com")
        shown = certified_key(self.blob) or self.blob
        return f"{self.name} ({kind} {fingerprint(shown)})"


@dataclass(slots=True)
class _Lock:
    """The private half of one file, unlocked at most once."""

    file: KeyFile
    passphrase: Secret | None
    attempts: int
    key: PrivateKey | None = None
    failure: str | None = None

    def unlock(self) -> PrivateKey:
        if self.failure is not None:
            raise CannotSign(self.failure)
        if self.key is None:
            try:
                self.key = self._unlock()
            except (KeyFileError, CannotSign) as error:
                self.failure = str(error)
                raise CannotSign(self.failure) from None
        return self.key

    def _unlock(self) -> PrivateKey:
        if not self.file.encrypted:
            return self.file.unlock(None)
        if self.passphrase is None:
            raise CannotSign("it is encrypted, and no passphrase was given")
        if isinstance(self.passphrase, str):
            return self.file.unlock(self.passphrase)
        for _ in range(self.attempts):
            text = self.passphrase(f"Enter passphrase for key '{self.file.path}': ")
            if not text:
                raise CannotSign("no passphrase was given")
            try:
                return self.file.unlock(text)
            except WrongPassphrase as error:
                log.info("%s: %s", self.file.path, str(error))
        raise CannotSign("the passphrase is wrong")

    def sign(self, data: bytes, algorithm: str) -> bytes:
        return sign(self.unlock(), data, algorithm)

    def public_blob(self) -> bytes:
        return public_blob(self.unlock())


@dataclass(slots=True)
class Identities:
    """What can be offered for one connection; `close()` lets go of the agent."""

    config: HostConfig
    passphrase: Secret | None = field(default=None, repr=False)
    # What could not be used, and why: for the error, if there will be one.
    notes: list[str] = field(default_factory=list)
    _agent: Agent | None = None

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()

    def find(self) -> Iterator[Identity]:
        """Yield the identities to offer, each once."""
        files = [
            file for path in self.config.identity_files for file in self._file(path)
        ]
        of_agent = self._agent_keys()
        certificates = self._certificates()
        mine = {file.blob for file in files if file.blob is not None}
        seen: set[bytes] = set()
        for identity in (
            *self._certified(certificates, files, of_agent),
            *self._from_agent(of_agent, mine, {blob for _, blob in certificates}),
            *(self._from_file(file) for file in files if file.data),
        ):
            if identity.blob is None or identity.blob not in seen:
                yield identity
            if identity.blob is not None:
                seen.add(identity.blob)

    def _note(self, name: object, why: object) -> None:
        log.info("%s: %s", name, str(why))
        self.notes.append(f"{name}: {why}")

    def _file(self, path: Path) -> list[KeyFile]:
        try:
            return [read_key_file(path)]
        except FileNotFoundError:
            if self.config.identity_files_given:
                self._note(path, "there is no such file")
        except KeyFileError as error:
            self._note(path, error)
        return []

    def _agent_keys(self) -> list[AgentKey]:
        path = self.config.identity_agent
        if path is None:
            return []
        try:
            self._agent = Agent(path)
            return self._agent.keys()
        except AgentError as error:
            self._note("agent", error)
            return []

    def _certificates(self) -> list[tuple[Path, bytes]]:
        found = []
        beside = [certificate_of(path) for path in self.config.identity_files]
        for path in (*self.config.certificate_files, *beside):
            try:
                blob = read_public_file(path)
            except FileNotFoundError:
                if path in self.config.certificate_files:
                    self._note(path, "there is no such file")
                continue
            except KeyFileError as error:
                self._note(path, error)
                continue
            if certified_key(blob) is None:
                self._note(path, "it is not a certificate")
                continue
            found.append((path, blob))
        return found

    def _certified(
        self,
        certificates: list[tuple[Path, bytes]],
        files: list[KeyFile],
        of_agent: list[AgentKey],
    ) -> Iterator[Identity]:
        for path, blob in certificates:
            key = certified_key(blob)
            of_file = [self._lock(f) for f in files if f.blob == key and f.data]
            if any(agent_key.blob == key for agent_key in of_agent):
                yield Identity(str(path), blob, self._agent_signer(key or b""), True)
            elif of_file:
                lock = of_file[0]
                yield Identity(str(path), blob, lock.sign, lock.file.encrypted)
            else:
                self._note(path, "its private key is neither in a file nor the agent")

    def _from_agent(
        self, keys: list[AgentKey], mine: set[bytes], certificates: set[bytes]
    ) -> Iterator[Identity]:
        def named(key: AgentKey) -> bool:
            return (certified_key(key.blob) or key.blob) in mine

        for key in sorted(keys, key=named, reverse=True):  # keeps the agent's order
            if self.config.identities_only and not (
                named(key) or key.blob in certificates
            ):
                continue
            name = f"agent key {key.comment}"
            yield Identity(name, key.blob, self._agent_signer(key.blob), True)

    def _from_file(self, file: KeyFile) -> Identity:
        lock = self._lock(file)
        return Identity(
            str(file.path), file.blob, lock.sign, file.encrypted, lock.public_blob
        )

    def _lock(self, file: KeyFile) -> _Lock:
        return _Lock(file, self.passphrase, self.config.password_prompts)

    def _agent_signer(self, blob: bytes) -> Callable[[bytes, str], bytes]:
        def sign_by_agent(data: bytes, algorithm: str) -> bytes:
            assert self._agent is not None
            try:
                return self._agent.sign(blob, data, algorithm)
            except AgentError as error:
                raise CannotSign(str(error)) from None

        return sign_by_agent


def signature_algorithm(
    blob: bytes, server_algorithms: tuple[str, ...], allowed: tuple[str, ...] | None
) -> tuple[str, str] | None:
    """Return (what the request names, what signs), None if there is no common one.

    They differ for a certificate. An RSA key signs with SHA-2, as the server prefers
    (RFC 8332); a server that does not say what it takes is tried with the strongest.
    """
    name = key_type(blob)
    suffix = CERTIFICATE_SUFFIX if name.endswith(CERTIFICATE_SUFFIX) else ""
    plain = name.removesuffix(suffix)
    if plain == "ssh-rsa":
        choices = [
            choice
            for choice in RSA_ALGORITHMS
            if not server_algorithms or choice in server_algorithms
        ]
    else:
        choices = [plain]
    for choice in choices:
        if allowed is None or choice + suffix in allowed:
            return choice + suffix, choice
    return None
