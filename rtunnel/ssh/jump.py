"""Reach a server: directly, by a command, or through other servers (ProxyJump).

`ProxyJump a,b` means: connect to b through a, and to the server through b. Each hop
is a connection of its own, with its own look-up in ssh_config, its own host key check
and its own login; what was said about the destination (user, keys, `-o`) does not
hold for it. The hops before the last come from the list; the first one may have a
ProxyJump of its own in ssh_config, as with ssh(1).

A hop lives as long as what goes through it: when the outer connection closes its
socket, the hop's connection is closed, and so on down the chain.
"""

from __future__ import annotations

import socket
import threading
from typing import Final, Protocol

import paramiko

from rtunnel.addresses import parse_destination
from rtunnel.errors import (
    ChannelOpenError,
    ConfigError,
    ConnectionLost,
    HostUnreachable,
    OpenFailureCode,
    RequestTimeout,
)
from rtunnel.ssh.carrier import CarrierSocket, carrier_pair, dial, run_proxy_command
from rtunnel.ssh.config import resolve
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.options import HostConfig, Options

# A chain longer than this is a configuration that feeds itself with new names.
HOPS_MAX: Final = 16


class Connect(Protocol):
    """How a hop is connected: the same way as any server."""

    def __call__(
        self, config: HostConfig, options: Options, chain: tuple[HostConfig, ...]
    ) -> paramiko.Transport: ...


def reach(
    config: HostConfig,
    options: Options,
    chain: tuple[HostConfig, ...],
    connect: Connect,
) -> socket.socket:
    """Return a connected socket to the server; `chain` is who wants to go through it.

    Blocks. Raises `HostUnreachable` and `ConfigError`, and for a hop whatever
    connecting to it raises.
    """
    if options.sock is not None:
        return options.sock
    if config.proxy_command is not None:
        return run_proxy_command(config.proxy_command)
    if config.proxy_jump:
        return _through_hop(config, options, chain, connect)
    return dial(config)


def _through_hop(
    config: HostConfig,
    options: Options,
    chain: tuple[HostConfig, ...],
    connect: Connect,
) -> CarrierSocket:
    *before, last = config.proxy_jump
    # Without hops before it, the hop's own configuration says how to reach it.
    hop_options = options.for_jump_host(",".join(before) or None)
    hop_config = resolve(parse_destination(last), hop_options)
    chain = (*chain, config)
    if len(chain) > HOPS_MAX or any(
        (hop_config.host, hop_config.port) == (other.host, other.port)
        for other in chain
    ):
        path = " -> ".join(str(one) for one in (*chain, hop_config))
        raise ConfigError(
            f"ProxyJump goes in a circle: {path}; give the jump host "
            "`ProxyJump none` in ssh_config"
        )
    hop = connect(hop_config, hop_options, chain)
    carrier, theirs = carrier_pair()
    try:
        Connection.of(hop).open_tcp(
            config.host, config.port, theirs, timeout_s=config.connect_timeout_s
        )
    except BaseException as error:
        carrier.close()
        hop.close()
        if isinstance(error, ChannelOpenError | ConnectionLost | RequestTimeout):
            advice = (
                "; do its AllowTcpForwarding and PermitOpen allow it?"
                if isinstance(error, ChannelOpenError)
                and error.code == OpenFailureCode.ADMINISTRATIVELY_PROHIBITED
                else ""
            )
            raise HostUnreachable(
                f"{hop_config} could not connect to {config.host} port {config.port}: "
                f"{error}{advice}"
            ) from error
        raise

    def end_hop() -> None:
        # The closer may be a transport's thread, which must not wait for another.
        threading.Thread(target=hop.close, name="rtunnel-hop-end").start()

    carrier.on_close(end_hop)
    return carrier
