"""What a caller may say about a connection, and what is decided about it.

`Options` is the question side: every field may be left open. `HostConfig` is the
answer side: `rtunnel.ssh.config.resolve()` makes it, and the modules that dial, check
host keys and authenticate read nothing else.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypedDict

from rtunnel.addresses import Destination


class HostKeyPolicy(Enum):
    """What to do with a host key that is not known (StrictHostKeyChecking)."""

    STRICT = "yes"
    ASK = "ask"
    ACCEPT_NEW = "accept-new"
    ACCEPT = "no"


@dataclass(frozen=True, slots=True)
class HostKeyQuestion:
    """A host key that is not known; the answer True takes it into known_hosts."""

    host: str
    key_type: str
    fingerprint: str  # "SHA256:..."
    known_hosts: str  # the file it would be added to


@dataclass(frozen=True, slots=True)
class InteractiveQuestion:
    """A request of keyboard-interactive authentication (RFC 4256, section 3.2)."""

    user: str
    host: str
    title: str
    instructions: str
    prompts: tuple[tuple[str, bool], ...]  # (text, whether the answer may be shown)


HostKeyPrompt = Callable[[HostKeyQuestion], bool]
Interactive = Callable[[InteractiveQuestion], Sequence[str]]
Secret = str | Callable[[str], str | None]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may say about a connection; None leaves it to ssh_config(5).

    For a command line: `-l` is `user`, `-p` is `port`, `-i` adds to `identity_files`,
    `-J` is `jump`, `-F` is `config_file` ("none" for no file), and every `-o` adds
    its text to `ssh_options`.

    `password` and `passphrase` are the secret, or are called with the text of the
    question and return it (None gives up). `interactive` answers
    keyboard-interactive requests, `host_key_prompt` decides on unknown host keys.
    They are called on the thread that connects, never on the transport's.

    `jump_options` holds for the hosts of `jump` what is theirs alone: keys, secrets,
    whatever of these options differs there.

    `sock` is a connected socket to use instead of dialling; from the call on it
    belongs to the connection.
    """

    user: str | None = None
    port: int | None = None
    identity_files: Sequence[PathLike] = ()
    certificate_files: Sequence[PathLike] = ()
    agent: bool | PathLike | None = None
    password: Secret | None = field(default=None, repr=False)
    passphrase: Secret | None = field(default=None, repr=False)
    interactive: Interactive | None = None
    known_hosts: PathLike | Sequence[PathLike] | None = None
    host_key_policy: HostKeyPolicy | str | None = None
    host_key_prompt: HostKeyPrompt | None = None
    config_file: PathLike | None = None
    jump: str | None = None
    jump_options: ConnectOptions | None = field(default=None, repr=False)
    proxy_command: str | None = None
    connect_timeout_s: float | None = None
    keepalive_interval_s: float | None = None
    keepalive_count_max: int | None = None
    ciphers: str | Sequence[str] | None = None
    compression: bool | None = None
    ssh_options: Mapping[str, str] | Sequence[str] = ()
    sock: socket.socket | None = None
    backend: str | None = None
    rekey_bytes: int | None = None
    rekey_s: float | None = None

    def for_jump_host(self, jump: str | None) -> Options:
        """Return what of this also holds for the hosts on the way.

        As with ssh's `-J`: what describes this side does; what was said about the
        destination (user, port, keys, password, `-o`) does not. A secret that is
        text is for the destination alone; a callable is told whom it is for. Then
        `jump_options` are what was said about these hosts.
        """
        common = Options(
            agent=self.agent,
            password=self.password if callable(self.password) else None,
            passphrase=self.passphrase,
            interactive=self.interactive,
            known_hosts=self.known_hosts,
            host_key_prompt=self.host_key_prompt,
            config_file=self.config_file,
            connect_timeout_s=self.connect_timeout_s,
            keepalive_interval_s=self.keepalive_interval_s,
            keepalive_count_max=self.keepalive_count_max,
            backend=self.backend,
        )
        own: Mapping[str, Any] = dict(self.jump_options or {})
        return replace(common, **own, jump=jump, jump_options=self.jump_options)


class ConnectOptions(TypedDict, total=False):
    """The fields of `Options`, as the keyword arguments of `connect`."""

    user: str | None
    port: int | None
    identity_files: Sequence[PathLike]
    certificate_files: Sequence[PathLike]
    agent: bool | PathLike | None
    password: Secret | None
    passphrase: Secret | None
    interactive: Interactive | None
    known_hosts: PathLike | Sequence[PathLike] | None
    host_key_policy: HostKeyPolicy | str | None
    host_key_prompt: HostKeyPrompt | None
    config_file: PathLike | None
    jump: str | None
    jump_options: ConnectOptions | None
    proxy_command: str | None
    connect_timeout_s: float | None
    keepalive_interval_s: float | None
    keepalive_count_max: int | None
    ciphers: str | Sequence[str] | None
    compression: bool | None
    ssh_options: Mapping[str, str] | Sequence[str]
    sock: socket.socket | None
    backend: str | None
    rekey_bytes: int | None
    rekey_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Everything that is decided about one connection before it is made."""

    original_host: str
    host: str
    port: int
    user: str
    address_family: socket.AddressFamily
    bind_address: str | None
    connect_timeout_s: float
    tcp_keepalive: bool
    proxy_command: str | None
    proxy_jump: tuple[str, ...]
    ciphers: str | None
    macs: str | None
    kex_algorithms: str | None
    host_key_algorithms: str | None
    pubkey_algorithms: str | None
    compression: bool
    rekey_bytes: int | None
    rekey_s: float | None
    keepalive_interval_s: float
    keepalive_count_max: int
    host_key_alias: str | None
    host_key_policy: HostKeyPolicy
    user_known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
    hash_known_hosts: bool
    identity_files: tuple[Path, ...]
    identity_files_given: bool  # not the defaults: worth a word where one is missing
    certificate_files: tuple[Path, ...]
    identities_only: bool
    identity_agent: Path | None
    auth_methods: tuple[str, ...]
    password_prompts: int
    batch_mode: bool
    permit_remote_open: tuple[str, ...] | None = None  # what SOCKS visitors may reach

    def __str__(self) -> str:
        return str(Destination(self.user, self.host, self.port))
