"""The gateway itself: it takes clients in, and ends what it has begun.

The loop's thread accepts connections and owns every table. A client's key exchange
and login run on the thread of its transport, so that a slow one holds up nobody.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rtunnel.errors import ConfigError
from rtunnel.gateway.binding import BACKLOG
from rtunnel.gateway.feeder import Feeder
from rtunnel.gateway.header_reader import HeaderReader
from rtunnel.gateway.host_key import load_or_make
from rtunnel.gateway.listeners import Listeners
from rtunnel.gateway.loop import Loop
from rtunnel.gateway.penalties import PenaltyBox
from rtunnel.gateway.processes import find_sftp_server
from rtunnel.gateway.session import House, Session
from rtunnel.gateway.settings import (
    Group,
    Limits,
    Network,
    Penalties,
    Rights,
    User,
    is_in,
)
from rtunnel.gateway.status import connection_infos
from rtunnel.gateway.transport import ServerTransport
from rtunnel.gateway.users import Users
from rtunnel.gateway.visitors import address_of
from rtunnel.proxy_protocol import ProxyHeader
from rtunnel.ssh.known_hosts import fingerprint, known_name
from rtunnel.status import model
from rtunnel.tunnel.dialler import Dialler

log = logging.getLogger("rtunnel.gateway.server")

# How long the threads of a connection may take to end when the gateway closes, and
# how many connections end at the same time.
JOIN_S: Final = 5.0
CLOSING_THREADS: Final = 16

# What a client is told before it is cut off; ssh -v shows it (RFC 4253, section 4.2).
_PENALISED: Final = b"Not allowed at this time\r\n"
_FULL: Final = b"Too many connections\r\n"


class Gateway:
    """An SSH server for reverse tunnels; see `rtunnel.gateway`.

    `listen` is where it listens for clients; port 0 takes any, and "" is every
    address, of IPv4 and IPv6. `authorized_keys` has
    lines of that format (str) and files of them (Path; `%u` stands for the user's
    name), which are read again when they change. They are good for every user name;
    `users` have keys and rights of their own. `host_key` is a file, made if it does
    not exist; None makes a key for this time only.

    `rights` is what a user may have who is not in `users`. `allow_ports` and
    `allow_socket_dir` are short for the two most wanted of them. `groups` are places
    that several clients serve together.

    Connections from `proxies` begin with a PROXY header, as do those of visitors from
    `visitor_proxies`: from there the header says who it is, and nobody else may.

    Raises `ConfigError` for what of this cannot be used.
    """

    def __init__(
        self,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        *,
        authorized_keys: Sequence[str | Path] = (),
        host_key: Path | None = None,
        allow_ports: range | None = None,
        allow_socket_dir: Path | None = None,
        rights: Rights | None = None,
        users: Sequence[User] = (),
        groups: Iterable[Group] = (),
        limits: Limits | None = None,
        penalties: Penalties | None = None,
        proxies: tuple[Network, ...] = (),
        visitor_proxies: tuple[Network, ...] = (),
    ) -> None:
        rights = rights or Rights()
        if allow_ports is not None:
            rights = replace(rights, ports=(allow_ports,))
        if allow_socket_dir is not None:
            rights = replace(rights, socket_folder=allow_socket_dir)
        self._listen = listen
        self._proxies = proxies
        self._limits = limits or Limits()
        self._host_key = load_or_make(host_key)
        self._loop = Loop("rtunnel-gateway")
        self._feeder = Feeder()
        self._dialler = Dialler()
        self._listeners = Listeners(self._loop, self._feeder, groups, visitor_proxies)
        self._house = self._make_house(authorized_keys, rights, users, self._limits)
        self._started = model.now()
        self._port: int | None = None
        self._closed = False
        # Only on the loop's thread, until that has ended; and those above that `reload`
        # replaces.
        self._penalties = PenaltyBox(penalties or Penalties())
        self._sessions: set[Session] = set()
        self._ending: set[Session] = set()
        self._readers: set[HeaderReader] = set()
        self._full = False
        # Protected by _lock.
        self._lock = threading.Lock()
        self._logged_in: Counter[str] = Counter()
        self._guests = 0  # all of them

    def _make_house(
        self,
        authorized_keys: Sequence[str | Path],
        rights: Rights,
        users: Sequence[User],
        limits: Limits,
    ) -> House:
        if not find_sftp_server() and any(
            each.sftp for each in (rights, *(user.rights for user in users))
        ):
            raise ConfigError(
                "SFTP is switched on, and there is no sftp-server: install it "
                "(Debian: apt-get install openssh-sftp-server)"
            )
        return House(
            loop=self._loop,
            listeners=self._listeners,
            feeder=self._feeder,
            dialler=self._dialler,
            users=Users(authorized_keys, rights, users),
            limits=limits,
            on_login=self._count_in,
            on_end=self._forget,
        )

    def reload(
        self,
        *,
        authorized_keys: Sequence[str | Path] = (),
        rights: Rights | None = None,
        users: Sequence[User] = (),
        groups: Iterable[Group] = (),
        limits: Limits | None = None,
        penalties: Penalties | None = None,
        proxies: tuple[Network, ...] = (),
        visitor_proxies: tuple[Network, ...] = (),
    ) -> None:
        """Take over other settings, for clients and requests that come from now on.

        Who is logged in keeps what they have. May read files. Any thread. Raises
        `ConfigError`, and changes nothing then.
        """
        limits = limits or Limits()
        house = self._make_house(authorized_keys, rights or Rights(), users, limits)
        groups = tuple(groups)

        def apply() -> None:
            self._house, self._limits, self._proxies = house, limits, proxies
            self._penalties.settings = penalties or Penalties()
            self._listeners.reload(groups, visitor_proxies)

        self._loop.call(apply)
        log.info("settings taken over: users=%d groups=%d", len(users), len(groups))

    def start(self) -> Self:
        """Listen for clients. Raises `ConfigError` if that is not possible."""
        if self._port is not None or self._closed:
            raise RuntimeError("a gateway is started once")
        host, port = self._listen
        try:
            server = _listen_on(host, port)
        except OSError as error:
            raise ConfigError(
                f"the gateway cannot listen on {host or '*'} port {port}: "
                f"{error.strerror}; choose another address or port"
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

    @property
    def fingerprint(self) -> str:
        """The host key, as ssh shows it to who connects for the first time."""
        return fingerprint(self._host_key.asbytes())

    def known_hosts_line(self, host: str | None = None) -> str:
        """Return the line with which a client's known_hosts vouches for this gateway.

        `host` is the name that clients connect to; None: the address of `listen`.
        """
        name = known_name(host or self._listen[0] or "127.0.0.1", self.port)
        key = self._host_key
        return f"{name} {key.get_name()} {key.get_base64()}\n"

    def status(self) -> model.ProcessStatus:
        """Return what there is now: clients and their listeners.

        Never blocks. Any thread.
        """
        return model.of_process(
            "gateway",
            self._started,
            connection_infos(tuple(self._sessions), self._listeners),
            # No client at all is fine: what counts is that one may come.
            ready=self._port is not None and not self._closed,
        )

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
        self._feeder.close()
        self._dialler.close()
        self._dialler.join(JOIN_S)
        self._sessions.clear()
        self._ending.clear()
        log.info("gateway closed")

    # On the loop's thread.

    def _stop(self) -> None:
        self._loop.leave(self._server)
        self._server.close()
        for reader in self._readers:
            reader.close()
        self._listeners.stop()
        for session in self._sessions:
            self._listeners.close_all(session)

    def _welcome(self, sock: socket.socket, address: object) -> None:
        """Take a connection; find out where it comes from."""
        origin = address_of(address)
        if not is_in(origin[0], self._proxies):
            self._admit(sock, origin)
            return
        if self._refuse_if_full(sock):
            return

        def read(header: ProxyHeader | None) -> None:
            self._readers.discard(reader)
            if header is not None:
                self._admit(sock, header.source or origin)

        reader = HeaderReader(self._loop, sock, origin, read)
        self._readers.add(reader)

    def _refuse_if_full(self, sock: socket.socket) -> bool:
        """Refuse a connection if there are too many, or too many at the door."""
        with self._lock:
            strangers = len(self._sessions) - self._guests + len(self._readers)
        if (
            strangers < self._limits.unauthenticated_max
            and len(self._sessions) < self._limits.connections_max
        ):
            self._full = False
            return False
        _send_away(sock, _FULL)
        if not self._full:
            log.warning(
                "too many connections: all=%d without_login=%d; refusing new ones",
                len(self._sessions),
                strangers,
            )
        self._full = True
        return True

    def _admit(self, sock: socket.socket, origin: tuple[str, int]) -> None:
        """Take a client in, unless it is penalised or too many are there already."""
        if self._penalties.refuses(origin[0]):
            log.info("refused a penalised address: address=%s", origin[0])
            _send_away(sock, _PENALISED)
            return
        if self._refuse_if_full(sock):
            return
        try:
            session = Session(
                ServerTransport(sock, self._host_key), origin, self._house
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
        if session.failure is not None:
            if not is_in(session.origin[0], self._proxies):
                self._penalties.penalise(session.origin[0], session.failure)
        else:
            with self._lock:
                user = session.login.user
                self._logged_in[user] -= 1
                self._guests -= 1
                if not self._logged_in[user]:
                    del self._logged_in[user]
        # Its threads may be at their last words.
        self._ending = {other for other in self._ending if other.is_ending()}
        self._ending.add(session)

    # On the transport's thread of a client.

    def _count_in(self, session: Session) -> str | None:
        login = session.login
        with self._lock:
            self._logged_in[login.user] += 1
            self._guests += 1
            count = self._logged_in[login.user]
        if count > login.rights.connections_max:
            return f"more than {login.rights.connections_max} connections of this user"
        return None

    def __enter__(self) -> Self:
        return self if self._port is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _listen_on(host: str, port: int) -> socket.socket:
    if host == "" and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _send_away(sock: socket.socket, text: bytes) -> None:
    """Say why, and close."""
    with contextlib.suppress(OSError):
        sock.send(text, socket.MSG_DONTWAIT)
    sock.close()
