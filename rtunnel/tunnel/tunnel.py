"""The tunnel: listeners and dialled connections over one SSH connection."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal

from rtunnel.addresses import (
    Bind,
    Target,
    UnixBind,
    UnixTarget,
    parse_address,
    parse_bind,
)
from rtunnel.errors import (
    ChannelOpenError,
    ConnectionLost,
    DisconnectCode,
    OpenFailureCode,
    TargetUnreachable,
)
from rtunnel.forwards import Forward
from rtunnel.policy import CONNECT_TIMEOUT_S, Network, Policy, Priority
from rtunnel.services import SocksService
from rtunnel.ssh.connection import REQUEST_TIMEOUT_S, Connection
from rtunnel.ssh.seams import AnyTransport
from rtunnel.stats import ListenerStats, TunnelStats
from rtunnel.tunnel.handlers import ACCEPT_BACKLOG, HandlerSpec, make_handler
from rtunnel.tunnel.listener import Listener, ListenerState
from rtunnel.tunnel.workers import LoopOf, Workers

log = logging.getLogger("rtunnel.tunnel")

# A courtesy at the end: the server frees the ports anyway when the connection closes.
CANCEL_ALL_TIMEOUT_S: Final = 1.0
# How long `close` waits for each thread; one that runs a handler's own code may
# take longer to notice that its connection is gone.
JOIN_TIMEOUT_S: Final = 1.0


class Tunnel:
    """Reverse tunnels over a connected and authenticated transport.

    Takes an `rtunnel.Transport`, or any other `paramiko.Transport`, and owns it:
    `close` closes it. Raises `BackendUnavailable` when `backend` (or RTUNNEL_BACKEND)
    names one that cannot run on it, `ConnectionLost` if it is not connected.

    Every method may be called from any thread, handlers included. As a context
    manager it closes at the end of the block.
    """

    def __init__(self, transport: AnyTransport, *, backend: str | None = None) -> None:
        # Read-only after construction.
        self._connection = Connection.of(transport, backend)
        self._workers = Workers()
        self._since = datetime.now(UTC)
        # Protected by _lock; nothing is called while it is held.
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._retired: list[ListenerStats] = [_NOTHING]
        self._closing = False
        self._lost: ConnectionLost | None = None
        self._ended = threading.Event()
        self._connection.add_end_callback(self._on_end)

    def __repr__(self) -> str:
        state = "closed" if self._ended.is_set() else "open"
        return f"<Tunnel {self.backend} listeners={len(self.listeners)} {state}>"

    @property
    def transport(self) -> AnyTransport:
        """The transport below, for exec, SFTP and whatever else it does."""
        return self._connection.transport

    @property
    def connection(self) -> Connection:
        """The connection protocol of the transport: requests and channels."""
        return self._connection

    @property
    def backend(self) -> str:
        """What moves the bytes: "engine", "pump" or "python"."""
        return self._connection.backend.name

    @property
    def backend_reason(self) -> str:
        """Why it is this backend."""
        return self._connection.backend_reason

    @property
    def listeners(self) -> list[Listener]:
        """The listeners that are not closed, in the order they were made."""
        with self._lock:
            listeners = list(self._listeners)
        return [entry for entry in listeners if entry.state is not ListenerState.CLOSED]

    def listen(
        self,
        bind: int | str | tuple[str, int] | Bind,
        to: HandlerSpec = None,
        *,
        name: str | None = None,
        backlog: int = ACCEPT_BACKLOG,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
        diagnose: bool = True,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        priority: Priority = "auto",
        allow: Iterable[str | Network] = (),
        deny: Iterable[str | Network] = (),
        max_connections: int | None = None,
        rate_bytes_per_s: int | None = None,
        idle_timeout_s: float | None = None,
        proxy_protocol: Literal[1, 2] | None = None,
        permit_open: Iterable[str] | None = None,
    ) -> Listener:
        """Have the server listen, and take its visitors to `to`.

        `bind` is a port (0: the server chooses, see `Listener.port`),
        `(address, port)`, `"address:port"`, or the path of a Unix socket over there.
        `to` is a target on this side (`"host:port"`, `"unix:/path"`), a service
        (`"socks"`, `"folder:/path"`, `"exec:command"`, `"app:module:attribute"`), a
        function called with a real socket and, if it takes one, a `Visitor` (on a
        thread of its own), an `async def` called with reader, writer and perhaps a
        `Visitor` (on one loop of the tunnel), or None: then `Listener.accept()`
        returns them. A parameter with a default gets a `Visitor` only if it is
        annotated as one.

        Where several connections share the tunnel, "interactive" ones go first and
        "bulk" is held to what the path takes without a queue; "auto" tells them apart
        by what they move. (The engine's; other backends do not schedule.)

        The rest are the rules for visitors, each a field of `rtunnel.policy.Policy`:
        the networks that they may come from, or not; how many at once; bytes per
        second, for all of them together in each direction; how long they may be idle;
        the version of a PROXY header that the target is sent; what SOCKS may dial.

        Why a server refuses is looked into, by a visit to that port among others;
        without `diagnose` it is not, and every refusal is a `ForwardingDenied`.

        A visitor is confirmed when its target answered (within `connect_timeout_s`),
        else it sees its connection closed. Waits for the server; any number of
        threads may listen at once. Raises `PortInUse`, `ForwardingDenied`,
        `RequestTimeout`, `ConnectionLost`, `InvalidAddress`; `ConfigError` for a
        service that cannot run here, ValueError for rules that make no sense.
        (RFC 4254, section 7.1)
        """
        forward = Forward(parse_bind(bind))
        if permit_open is None and (to == "socks" or isinstance(to, SocksService)):
            permit_open = getattr(self.transport, "permit_remote_open", None)
        policy = Policy.of(
            allow=allow,
            deny=deny,
            max_connections=max_connections,
            rate_bytes_per_s=rate_bytes_per_s,
            idle_timeout_s=idle_timeout_s,
            connect_timeout_s=connect_timeout_s,
            priority=priority,
            proxy_protocol=proxy_protocol,
            permit_open=permit_open,
        )
        if isinstance(forward.bind, UnixBind) and policy.looks_at_addresses:
            raise ValueError(
                "visitors of a Unix socket have no address: allow and deny cannot be "
                "kept; the permissions of the socket can"
            )
        handler, target = make_handler(to, self._workers, policy, backlog)
        listener = Listener(
            self, self._connection, forward, handler, target, name, policy
        )
        try:
            with self._lock:
                if self._closing:
                    raise self._closed_error()
                self._listeners.append(listener)
            self._connection.listen(
                forward, listener.offer, timeout_s, diagnose=diagnose
            )
        except BaseException:
            with self._lock:
                if listener in self._listeners:  # not so if the connection ended
                    self._listeners.remove(listener)
            handler.close()
            raise
        if self._lost is not None:
            # It ended while the reply was on its way.
            listener.lose(self._lost)
            raise self._lost
        if policy.idle_timeout_s is not None:
            self._workers.idle.add(listener)
        log.info("listening: listener=%s target=%s", listener.name, target)
        return listener

    def dial(
        self,
        target: str | tuple[str, int] | Target,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> socket.socket:
        """Connect to a host and port, or a Unix socket, *as the server sees it*.

        Returns a real socket. Waits for the server to connect. Raises
        `TargetUnreachable` (CONNECT_FAILED), `ChannelOpenError` (refused by the
        server: see PermitOpen, AllowTcpForwarding), `RequestTimeout`,
        `ConnectionLost`. (RFC 4254, section 7.2)
        """
        parsed = parse_address(target)
        ours, theirs = socket.socketpair()
        try:
            if isinstance(parsed, UnixTarget):
                self._connection.open_unix(parsed.path, ours, None, timeout_s)
            else:
                self._connection.open_tcp(
                    parsed.host, parsed.port, ours, None, timeout_s
                )
        except ChannelOpenError as error:
            theirs.close()
            if error.code == OpenFailureCode.CONNECT_FAILED:
                raise TargetUnreachable(
                    f"the server cannot connect to {parsed}: {error}"
                ) from error
            raise
        except BaseException:
            theirs.close()
            raise
        return theirs

    def close(self, drain_s: float = 0.0) -> None:
        """Stop listening, end the connections, close the transport.

        Connections of visitors get `drain_s` to end by themselves, then they are
        reset. When this returns the server has released the ports (unless it did not
        answer for a second), and the threads have ended, but for handlers that are
        still busy. The first call does it; another one returns at once.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
            listeners = list(self._listeners)
        closing = [listener for listener in listeners if listener.begin_close()]
        if closing and not self._ended.is_set():
            self._connection.cancel_all(
                [listener.forward for listener in closing], CANCEL_ALL_TIMEOUT_S
            )
        deadline = time.monotonic() + drain_s
        for listener in closing:
            listener.finish_close(deadline)
        self._workers.close(cancel=True)
        self.transport.close()
        self._connection.join(JOIN_TIMEOUT_S)
        self._workers.join(JOIN_TIMEOUT_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end: True when it was closed by this side, False after the time.

        Raises `ConnectionLost` when the connection ended in another way.
        """
        if not self._ended.wait(timeout_s):
            return False
        assert self._lost is not None
        if not (self._closing or self._connection.closed_here):
            raise self._lost
        return True

    def stats(self) -> TunnelStats:
        """Return the sums over all listeners, closed ones too. Never blocks."""
        with self._lock:
            listeners = list(self._listeners)
            retired = list(self._retired)
        total = _add(retired + [listener.stats() for listener in listeners])
        return TunnelStats(
            listeners=len(self.listeners),
            connections_open=total.connections_open,
            connections_total=total.connections_total,
            refused=total.refused,
            errors=total.errors,
            bytes_in=total.bytes_in,
            bytes_out=total.bytes_out,
            since=self._since,
            last_error=total.last_error,
            backend=self.backend,
        )

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run `async def` handlers on this loop, and not on one of the tunnel's own.

        Before the first `listen`. The loop goes on when the tunnel ends.
        """
        self._workers.loop = LoopOf(loop)

    # For the listeners.

    def retire(self, listener: Listener) -> None:
        """Keep the counters of a listener that is over, and let go of it."""
        stats = listener.stats()
        self._workers.idle.remove(listener)
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
                self._retired = [_add([*self._retired, stats])]

    def _on_end(self, lost: ConnectionLost) -> None:
        """The connection is over. On the transport's thread, or that of close()."""
        with self._lock:
            self._lost = lost
            listeners = list(self._listeners)
        for listener in listeners:
            listener.lose(lost)
        self._workers.close(cancel=False)
        self._ended.set()

    def _closed_error(self) -> ConnectionLost:
        return self._lost or ConnectionLost(
            "the tunnel is closed", DisconnectCode.BY_APPLICATION
        )


_NOTHING: Final = ListenerStats(0, 0, 0, 0, 0, 0, datetime.max, None)


def _add(parts: list[ListenerStats]) -> ListenerStats:
    errors = [part.last_error for part in parts if part.last_error is not None]
    return ListenerStats(
        connections_open=sum(part.connections_open for part in parts),
        connections_total=sum(part.connections_total for part in parts),
        refused=sum(part.refused for part in parts),
        errors=sum(part.errors for part in parts),
        bytes_in=sum(part.bytes_in for part in parts),
        bytes_out=sum(part.bytes_out for part in parts),
        since=parts[0].since,
        last_error=errors[-1] if errors else None,
    )
