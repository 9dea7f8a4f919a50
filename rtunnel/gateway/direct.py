"""direct-tcpip, where it is switched on: a client connects through the gateway."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
from typing import Final

from rtunnel.addresses import TcpTarget
from rtunnel.errors import ConnectionLost, InvalidAddress, OpenFailureCode
from rtunnel.gateway.feeder import Feeder
from rtunnel.gateway.users import Login
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.patterns import match_pattern
from rtunnel.ssh.relay import PeerSide, RelayEnd
from rtunnel.tunnel.dialler import Dialler

log = logging.getLogger("rtunnel.gateway.direct")

CONNECT_TIMEOUT_S: Final = 10.0


class DirectChannels:
    """Those of one client. `open` is for the transport's thread, the rest for any."""

    def __init__(
        self, dialler: Dialler, feeder: Feeder, connection: Connection, login: Login
    ) -> None:
        self._dialler = dialler
        self._feeder = feeder
        self._connection = connection
        self._login = login
        # Protected by _lock.
        self._lock = threading.Lock()
        self._count = 0

    @property
    def count(self) -> int:
        """How many are open, or opening."""
        with self._lock:
            return self._count

    def open(self, peer: PeerSide, host: str, port: int) -> None:
        """Connect to where a client wants to, if it may; answer its open."""
        if not self._may(host, port):
            log.warning(
                "refused a connection: user=%r to=%r port=%d",
                self._login.user,
                host,
                port,
            )
            self._connection.send_open_failure(
                peer,
                OpenFailureCode.ADMINISTRATIVELY_PROHIBITED,
                f"connecting to {host} port {port} is disabled for this user",
            )
            return
        try:
            target = TcpTarget(host, port)
        except InvalidAddress as error:
            self._fail(peer, str(error))
            return

        def dialled(result: socket.socket | OSError) -> None:
            if isinstance(result, OSError):
                self._end(None)
                self._fail(peer, str(result.strerror or result))
            else:
                self._join(peer, result)

        with self._lock:
            self._count += 1
        self._dialler.dial(target, CONNECT_TIMEOUT_S, dialled)

    def _may(self, host: str, port: int) -> bool:
        if not self._login.key.may_open(host, port):
            return False
        for permit in self._login.rights.permit_open:
            pattern, _, wanted = permit.rpartition(":")
            if match_pattern(host.lower(), pattern.strip("[]").lower()) and (
                wanted in ("*", str(port))
            ):
                return True
        return False

    def _join(self, peer: PeerSide, sock: socket.socket) -> None:
        try:
            sock = self._feeder.wrap(
                sock,
                user=self._login.user,
                rate_bytes_per_s=self._login.rights.rate_bytes_per_s,
            )
        except OSError:
            self._end(None)
            self._fail(peer, os.strerror(errno.EMFILE))
            return
        with contextlib.suppress(ConnectionLost):
            self._connection.backend.accept(peer, sock, self._end)
            return
        self._end(None)

    def _end(self, end: RelayEnd | None) -> None:
        with self._lock:
            self._count -= 1

    def _fail(self, peer: PeerSide, reason: str) -> None:
        self._connection.send_open_failure(peer, OpenFailureCode.CONNECT_FAILED, reason)
