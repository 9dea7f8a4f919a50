"""The gateway itself: it takes clients in, and ends what it has begun.

The loop's thread accepts connections and owns every table. A client's key exchange
and login run on the thread of its transport, so that a slow one holds up nobody.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rtunnel.errors import ConfigError
from rtunnel.gateway.authorized_keys import AuthorizedKeys
from rtunnel.gateway.host_key import load_or_make
from rtunnel.gateway.listeners import BACKLOG, Listeners
from rtunnel.gateway.loop import Loop
from rtunnel.gateway.session import Session
from rtunnel.gateway.transport import ServerTransport
from rtunnel.ssh.known_hosts import known_name

log = logging.getLogger("rtunnel.gateway.server")

# As sshd: the last number of MaxStartups (10:30:100), from which on all are refused.
UNAUTHENTICATED_MAX: Final = 100
# How long the threads of a connection may take to end when the gateway closes, and
# how many connections end at the same time.
JOIN_S: Final = 5.0
CLOSING_THREADS: Final = 16


class Gateway:
    """An SSH server for reverse tunnels; see `rtunnel.gateway`.

    `listen` is where it listens for clients; port 0 takes any. `authorized_keys` has
    lines of that format (str) and files of them (Path), which are read again when
    they change. `host_key` is a file, made if it does not exist; None makes a key for
    this time only. Clients may have the ports of `allow_ports` (None: from 1024 on)
    and, if `allow_socket_dir` is given, socket paths right in that folder.

    Raises `ConfigError` for what of this cannot be used.
    """

    def __init__(
        self,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        *,
        authorized_keys: Sequence[str | Path],
        host_key: Path | None = None,
        allow_ports: range | None = None,
        allow_socket_dir: Path | None = None,
    ) -> None:
        self._listen = listen
        self._keys = AuthorizedKeys(authorized_keys)
        self._host_key = load_or_make(host_key)
        self._loop = Loop("rtunnel-gateway")
        self._listeners = Listeners(self._loop, allow_ports, allow_socket_dir)
        self._port: int | None = None
        self._closed = False
        # Only on the loop's thread, until that has ended.
        self._sessions: set[Session] = set()
        self._ending: set[Session] = set()
        self._full = False

    def start(self) -> Self:
        """Listen for clients. Raises `ConfigError` if that is not possible."""
        if self._port is not None or self._closed:
            raise RuntimeError("a gateway is started once")
        host, port = self._listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server(self._listen, family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"the gateway cannot listen on {host} port {port}: {error.strerror}; "
                "choose another address or port"
            ) from error
        server.setblocking(False)
        self._port = server.getsockname()[1]
        self._server = server
        self._loop.call(partial(self._loop.serve, server, self._welcome))
        self._loop.start()
        log.info("gateway listening: address=%s port=%d", host, self.port)
        return self

    @property
    def port(self) -> int:
        """The port that clients connect to, once the gateway is started."""
        if self._port is None:
            raise RuntimeError("the gateway has no port: start it first")
        return self._port

    def known_hosts_line(self, host: str | None = None) -> str:
        """Return the line with which a client's known_hosts vouches for this gateway.

        `host` is the name that clients connect to; None: the address of `listen`.
        """
        name = known_name(host or self._listen[0], self.port)
        key = self._host_key
        return f"{name} {key.get_name()} {key.get_base64()}\n"

    def close(self) -> None:
        """End all connections and listeners; wait for the threads. Any thread.

        Clients are told (DISCONNECT), and every port is free when this returns.
        """
        if self._closed:
            return
        self._closed = True
        self._loop.call(self._stop)
        self._loop.close()
        self._loop.join(JOIN_S)
        sessions = self._sessions | self._ending
        if sessions:
            with ThreadPoolExecutor(CLOSING_THREADS, "rtunnel-closing") as pool:
                list(pool.map(lambda session: session.close(JOIN_S), sessions))
        self._sessions.clear()
        self._ending.clear()
        log.info("gateway closed")

    # On the loop's thread.

    def _stop(self) -> None:
        self._loop.leave(self._server)
        self._server.close()
        for session in self._sessions:
            self._listeners.close_all(session)

    def _welcome(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """Take a client in, unless too many are at the door already."""
        strangers = sum(not session.is_authenticated for session in self._sessions)
        if strangers >= UNAUTHENTICATED_MAX:
            sock.close()
            if not self._full:
                log.warning("too many connections without a login: refusing new ones")
            self._full = True
            return
        self._full = False
        try:
            session = Session(
                ServerTransport(sock, self._host_key),
                f"{address[0]}:{address[1]}",
                self._keys,
                self._loop,
                self._listeners,
                self._forget,
            )
            session.start()
        except BaseException:
            # No thread to be had, say; then nobody else closes it.
            sock.close()
            raise
        # Its end comes by a call of the loop, and so later than this.
        self._sessions.add(session)

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        # Its threads may be at their last words.
        self._ending = {other for other in self._ending if other.is_ending()}
        self._ending.add(session)

    def __enter__(self) -> Self:
        return self if self._port is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
