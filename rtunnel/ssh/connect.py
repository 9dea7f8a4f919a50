"""Connect: reach the server, agree on keys, check the host key, log in.

Whatever fails, nothing is left half open: sockets, threads and subprocesses of every
hop are ended before the error is raised, or are ending.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import socket
import threading
from collections.abc import Iterable, Set
from typing import Any, Final, Unpack

import paramiko

from rtunnel.addresses import Destination
from rtunnel.errors import ConfigError, ConnectError, HostUnreachable, RTunnelError
from rtunnel.ssh.algorithms import FOREIGN_CIPHERS, choose
from rtunnel.ssh.auth import authenticate
from rtunnel.ssh.config import resolve
from rtunnel.ssh.host_certificates import CERTIFICATE_SUFFIX
from rtunnel.ssh.hostkeys import HOST_KEY_ALGORITHMS, HostKeyChecker
from rtunnel.ssh.jump import reach
from rtunnel.ssh.options import ConnectOptions, HostConfig, Options
from rtunnel.ssh.transport import Transport

log = logging.getLogger(__name__)

PARAMIKO_LATER_S: Final = 5.0
OPTION_NAMES: Final = frozenset(each.name for each in dataclasses.fields(Options))
# How a hop is reached is said by `jump` alone.
NOT_OF_A_HOP: Final = {"jump", "jump_options", "sock"}


def open_transport(
    destination: str | Destination, **options: Unpack[ConnectOptions]
) -> Transport:
    """Connect to a server and return the transport, logged in.

    `destination` is `[user@]host[:port]`, an `ssh://` URL or a host alias of
    ssh_config(5); the options are the fields of `Options`. The server sees one login
    (RFC 4253, RFC 4252); no channel is open yet.

    Blocks until the login is done; any thread. Callbacks are called on this thread.
    Raises `HostUnreachable`, `HostKeyError`, `AuthenticationFailed`, `ConnectError`
    (no common algorithm), `ConfigError`, `InvalidAddress` and `BackendUnavailable`.
    """
    given = _options(dict(options))
    try:
        config = resolve(destination, given)
    except BaseException:
        if given.sock is not None:
            given.sock.close()
        raise
    return _connect(config, given, ())


def _options(options: dict[str, Any]) -> Options:
    _check_names("connect()", options, OPTION_NAMES)
    if hop := options.get("jump_options"):
        _check_names("jump_options", hop, OPTION_NAMES - NOT_OF_A_HOP)
    return Options(**options)


def _check_names(whose: str, options: Iterable[str], names: Set[str]) -> None:
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = (
                f"; did you mean {near[0]}?" if near else f"; there is {sorted(names)}"
            )
            raise ConfigError(f"{whose} has no option {name!r}{hint}")


def _connect(
    config: HostConfig, options: Options, chain: tuple[HostConfig, ...]
) -> Transport:
    sock: socket.socket | None = None
    transport: Transport | None = None
    try:
        # Before dialling: a mistake in known_hosts should not cost a connection.
        prompt = None if config.batch_mode else options.host_key_prompt
        checker = HostKeyChecker(config, prompt)
        sock = reach(config, options, chain, _connect)
        transport = Transport(
            sock,
            backend=options.backend,
            rekey_bytes=options.rekey_bytes or config.rekey_bytes,
            rekey_s=options.rekey_s or config.rekey_s,
        )
        transport.permit_remote_open = config.permit_remote_open
        _set_algorithms(transport, config, checker)
        _agree_on_keys(transport, config)
        checker.check(transport.get_remote_server_key())
        authenticate(transport, config, options)
        transport.set_keepalive(config.keepalive_interval_s, config.keepalive_count_max)
    except BaseException:
        if transport is not None:
            transport.close()
            # Where the first message never came, the timer for it would run on.
            transport.packetizer.complete_handshake()
        for unused in (sock, options.sock):
            if unused is not None:
                unused.close()
        raise
    log.info("connected to %s (%s)", config, transport.remote_version)
    return transport


def _set_algorithms(
    transport: Transport, config: HostConfig, checker: HostKeyChecker
) -> None:
    security = transport.get_security_options()
    security.ciphers = choose(
        "Ciphers", config.ciphers, security.ciphers, security.ciphers, FOREIGN_CIPHERS
    )
    security.digests = choose("MACs", config.macs, security.digests, security.digests)
    security.kex = choose(
        "KexAlgorithms", config.kex_algorithms, security.kex, security.kex
    )
    host_keys = checker.algorithms()
    security.key_types = choose(
        "HostKeyAlgorithms",
        config.host_key_algorithms,
        host_keys,
        (
            *(name + CERTIFICATE_SUFFIX for name in HOST_KEY_ALGORITHMS),
            *HOST_KEY_ALGORITHMS,
        ),
    )
    transport.use_compression(config.compression)


def _agree_on_keys(transport: Transport, config: HostConfig) -> None:
    """Exchange version lines and keys (RFC 4253, sections 4.2 and 7)."""
    where = f"{config.host} port {config.port}"
    # Ours ends first: paramiko's would read as a server that is none.
    transport.banner_timeout = config.connect_timeout_s + PARAMIKO_LATER_S
    transport.handshake_timeout = config.connect_timeout_s + PARAMIKO_LATER_S
    # start_client() without an event returns at its time limit as if all were well.
    done = threading.Event()
    transport.start_client(event=done)
    if not done.wait(config.connect_timeout_s):
        raise HostUnreachable(
            f"{where} took the connection but did not finish the key exchange within "
            f"{config.connect_timeout_s:g} s: is it an SSH server, and not overloaded?"
        )
    if transport.is_active():
        return
    error = transport.get_exception()
    explain = getattr(transport.sock, "explain", None)
    reason = explain() if explain is not None else None
    if reason is not None:
        raise HostUnreachable(f"could not connect to {where}: {reason}") from error
    if isinstance(error, RTunnelError):
        raise error
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        raise ConnectError(
            f"{where} and this side have no algorithm in common ({error}): see "
            "Ciphers, MACs, KexAlgorithms and HostKeyAlgorithms"
        ) from error
    if not transport.remote_version:
        raise HostUnreachable(
            f"{where} answered, but not as an SSH server: is this the right port? "
            "(An sshd that has too many logins waiting, MaxStartups, does that too)"
        ) from error
    raise HostUnreachable(
        f"{where} ended the connection during the key exchange"
        + (f": {error}" if error and str(error) else "; its log says why")
    ) from error
