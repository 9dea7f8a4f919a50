"""The socket that carries an SSH connection, however the server is reached.

It is a real kernel socket in every case, so that the engine can run on it. Where it
is not dialled directly, one end of a socketpair is the carrier, and the other end is
fed by a ProxyCommand or by a channel of another connection. That helper lives as long
as the carrier: closing the carrier ends it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Final

from rtunnel.errors import ConfigError, HostUnreachable
from rtunnel.ssh.options import HostConfig

# How long a ProxyCommand may take to end after SIGHUP.
PROXY_END_S: Final = 2.0


class CarrierSocket(socket.socket):
    """One end of a socketpair; closing it ends what feeds the other end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self._lock = threading.Lock()
        self._end_helper: Callable[[], None] | None = None
        # Says what went wrong on the helper's side, if anything did.
        self.explain: Callable[[], str | None] = lambda: None

    def close(self) -> None:
        super().close()
        with self._lock:
            end, self._end_helper = self._end_helper, None
        if end is not None:
            end()

    def on_close(self, end: Callable[[], None]) -> None:
        """Call `end` once when the socket is closed; it must be quick."""
        with self._lock:
            self._end_helper = end


def carrier_pair() -> tuple[CarrierSocket, socket.socket]:
    """Return (the carrier, the end for whoever feeds it)."""
    mine, theirs = socket.socketpair()
    return CarrierSocket(mine), theirs


def dial(config: HostConfig) -> socket.socket:
    """Connect to the server by TCP, trying its addresses in turn.

    Each address has `connect_timeout_s`. Raises `HostUnreachable`, and `ConfigError`
    for a BindAddress that is not ours.
    """
    try:
        addresses = socket.getaddrinfo(
            config.host, config.port, config.address_family, socket.SOCK_STREAM
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise HostUnreachable(
            f"cannot find the address of {config.host!r} ({reason}): check the "
            "spelling, HostName in ssh_config, and DNS"
        ) from error
    failures: list[tuple[str, OSError]] = []
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            if config.tcp_keepalive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if config.bind_address is not None:
                _bind(sock, config.bind_address)
            sock.settimeout(config.connect_timeout_s)
            sock.connect(address)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            failures.append((str(address[0]), error))
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise _unreachable(config, failures) from failures[-1][1]


def _bind(sock: socket.socket, address: str) -> None:
    try:
        sock.bind((address, 0))
    except OSError as error:
        raise ConfigError(
            f"BindAddress {address}: {error.strerror or error}; it must be an address "
            "of this machine, of the server's address family"
        ) from error


def _unreachable(
    config: HostConfig, failures: list[tuple[str, OSError]]
) -> HostUnreachable:
    where = f"{config.host} port {config.port}"
    reasons = [
        (
            address,
            f"no answer within {config.connect_timeout_s:g} s"
            if isinstance(error, TimeoutError) and error.errno is None
            else error.strerror or str(error),
        )
        for address, error in failures
    ]
    texts = {reason for _, reason in reasons}
    said = (
        texts.pop()
        if len(texts) == 1
        else ", ".join(f"{address}: {reason}" for address, reason in reasons)
    )
    error = failures[-1][1]
    if isinstance(error, ConnectionRefusedError):
        advice = "is sshd running there, and on this port?"
    elif isinstance(error, TimeoutError):
        advice = "is the host up, and does a firewall in between drop the packets?"
    elif error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        advice = "is the network, or the VPN, up?"
    else:
        advice = "check host and port"
    return HostUnreachable(f"could not connect to {where}: {said}: {advice}")


def run_proxy_command(command: str) -> CarrierSocket:
    """Start a ProxyCommand; its standard input and output are the connection.

    It runs in the user's shell, as ssh(1) runs it, in our process group, so that it
    may ask on the terminal. Raises `HostUnreachable` where it cannot be started.
    """
    carrier, theirs = carrier_pair()
    shell = os.environ.get("SHELL") or "/bin/sh"
    try:
        process = subprocess.Popen(
            [shell, "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
    except OSError as error:
        carrier.close()
        raise HostUnreachable(
            f"cannot run ProxyCommand {command!r}: {shell}: {error.strerror}"
        ) from error
    finally:
        theirs.close()

    def explain() -> str | None:
        # It may be about to end, having closed its side.
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(PROXY_END_S)
            how = f"signal {-status}" if status < 0 else f"status {status}"
            return f"ProxyCommand {command!r} ended with {how}: run it by hand to see"
        return None

    def end() -> None:
        # A thread, because the closer may be the transport's thread. It is not a
        # daemon: a program that ends still reaps its child.
        threading.Thread(
            target=_end_process, args=(process,), name="rtunnel-proxy-end"
        ).start()

    carrier.explain = explain
    carrier.on_close(end)
    return carrier


def _end_process(process: subprocess.Popen[bytes]) -> None:
    try:
        process.send_signal(signal.SIGHUP)  # as ssh(1) ends it
        process.wait(PROXY_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
