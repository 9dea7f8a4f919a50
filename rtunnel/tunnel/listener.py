"""A listener: the handle of one forward, its visitors and its counters."""

from __future__ import annotations

import logging
import socket
import threading
import time
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Final

from rtunnel.addresses import ALL_INTERFACES, LOOPBACK, Bind
from rtunnel.errors import (
    ConnectionLost,
    ListenerClosed,
    OpenFailureCode,
    RequestRefused,
    RequestTimeout,
)
from rtunnel.forwards import Forward
from rtunnel.policy import Policy
from rtunnel.ssh.arrivals import ChannelOpen
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.relay import Priority, RateLimit, RelayEnd
from rtunnel.stats import ListenerStats
from rtunnel.tunnel.handlers import AcceptQueue, Handler, Visitor
from rtunnel.tunnel.visit import Visit

if TYPE_CHECKING:
    from rtunnel.tunnel.tunnel import Tunnel

log = logging.getLogger("rtunnel.tunnel.listener")
# One record when a connection begins, and one when it ends.
connections_log = logging.getLogger("rtunnel.connections")

# How long `close` waits for the server to say that the port is free.
CANCEL_TIMEOUT_S: Final = 10.0


class ListenerState(Enum):
    """What a listener does with a new visitor: takes it, or turns it away."""

    LISTENING = "listening"
    PAUSED = "paused"
    CLOSING = "closing"
    CLOSED = "closed"


_TABLE: Final = {
    ListenerState.LISTENING: frozenset(
        {ListenerState.PAUSED, ListenerState.CLOSING, ListenerState.CLOSED}
    ),
    ListenerState.PAUSED: frozenset(
        {ListenerState.LISTENING, ListenerState.CLOSING, ListenerState.CLOSED}
    ),
    ListenerState.CLOSING: frozenset({ListenerState.CLOSED}),
    ListenerState.CLOSED: frozenset[ListenerState](),
}


class Listener:
    """One port or socket path that the server listens on for us.

    Made by `Tunnel.listen`. Every method may be called from any thread, handlers
    included. As a context manager it closes at the end of the block.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        connection: Connection,
        forward: Forward,
        handler: Handler,
        target: str,
        name: str | None,
        policy: Policy,
    ) -> None:
        # Read-only after construction.
        self.tunnel = tunnel
        self.target = target
        self.policy = policy
        rate = policy.rate_bytes_per_s
        self.limit = None if rate is None else RateLimit(rate)
        self._name = name
        self._connection = connection
        self._forward = forward
        self._handler = handler
        self._since = datetime.now(UTC)
        # Protected by _changed; nothing of the visits is called while it is held.
        self._changed = threading.Condition()
        self._state = ListenerState.LISTENING
        self._visits: set[Visit] = set()  # undecided and live
        self._live = 0
        self._total = 0
        self._refused = 0
        self._errors = 0
        self._bytes_in = 0  # of relays that ended
        self._bytes_out = 0
        self._last_error: str | None = None

    def __repr__(self) -> str:
        return f"<Listener {self} {self._state.value}>"

    def __str__(self) -> str:
        return f"{self._forward} -> {self.target}"

    @property
    def name(self) -> str:
        """The name it was given, or where it listens."""
        return self._name or str(self._forward)

    @property
    def bind(self) -> Bind:
        """Where the server was asked to listen."""
        return self._forward.bind

    @property
    def address(self) -> str:
        """The address as requested: "localhost" by default; or the socket path."""
        return self._forward.address

    @property
    def port(self) -> int:
        """The port: the one the server chose if 0 was asked; 0 for a socket path."""
        return self._forward.port

    @property
    def priority(self) -> Priority:
        """Who goes first where several connections share the tunnel."""
        return self.policy.priority

    @property
    def state(self) -> ListenerState:
        """What it does now."""
        return self._state

    @property
    def stalled(self) -> int:
        """How many connections wait for window of the far side. Never blocks."""
        with self._changed:
            relays = [visit.relay for visit in self._visits]
        return sum(relay.stalled for relay in relays if relay is not None)

    def pause(self) -> None:
        """Turn visitors away, and reset the ones that are connected.

        The server goes on listening, so the port stays ours: a visitor gets a
        connection that is closed at once (ADMINISTRATIVELY_PROHIBITED). Never blocks.
        Raises `ListenerClosed`.
        """
        with self._changed:
            self._check_open()
            if self._state is ListenerState.PAUSED:
                return
            self._set_state(ListenerState.PAUSED)
            visits = list(self._visits)
        for visit in visits:
            visit.abort("paused")

    def resume(self) -> None:
        """Take visitors again. Never blocks. Raises `ListenerClosed`."""
        with self._changed:
            self._check_open()
            if self._state is ListenerState.PAUSED:
                self._set_state(ListenerState.LISTENING)

    def accept(self, timeout_s: float | None = None) -> tuple[socket.socket, Visitor]:
        """Wait for a visitor; return a real socket connected to it.

        Only for a listener without a handler. Up to 128 visitors wait, as for
        listen(2); more are turned away (RESOURCE_SHORTAGE). Raises TimeoutError,
        `ListenerClosed`, `ConnectionLost`.
        """
        if not isinstance(self._handler, AcceptQueue):
            raise RuntimeError(f"visitors of {self} go to its handler, not to accept()")
        try:
            return self._handler.take(timeout_s)
        except ListenerClosed:
            lost = self._connection.end
            if lost is not None:
                raise lost from None
            raise

    def close(self, drain_s: float = 0.0) -> None:
        """Listen no more, on the server too; the port is free when this returns.

        Connections get `drain_s` to end by themselves, then they are reset. Waits for
        the server (up to 10 s) and for the connections. Does nothing when closed; a
        server that does not answer the cancel is only logged. (RFC 4254, section 7.1)
        """
        if not self.begin_close():
            return
        try:
            self._connection.cancel(self._forward, CANCEL_TIMEOUT_S)
        except ConnectionLost:
            log.debug("not cancelled, the connection is over: listener=%s", self.name)
        except (RequestRefused, RequestTimeout) as error:
            log.warning("cancel failed: listener=%s error=%s", self.name, error)
        self.finish_close(time.monotonic() + drain_s)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until it is closed and no connection is left; False after the time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._state is ListenerState.CLOSED and not self._visits,
                timeout_s,
            )

    def stats(self) -> ListenerStats:
        """Return the counters up to now. Never blocks."""
        with self._changed:
            relays = [visit.relay for visit in self._visits]
            live = [relay for relay in relays if relay is not None]
            return ListenerStats(
                connections_open=self._live,
                connections_total=self._total,
                refused=self._refused,
                errors=self._errors,
                bytes_in=self._bytes_in + sum(relay.bytes_in for relay in live),
                bytes_out=self._bytes_out + sum(relay.bytes_out for relay in live),
                since=self._since,
                last_error=self._last_error,
            )

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # For the tunnel.

    @property
    def forward(self) -> Forward:
        """The entry in the table of forwards."""
        return self._forward

    def offer(self, pending: ChannelOpen) -> None:
        """Take a visitor or turn it away. On the transport's thread."""
        visit = Visit(self, pending)
        with self._changed:
            state = self._state
            count = len(self._visits)
            self._visits.add(visit)
        most = self.policy.max_connections
        if state is not ListenerState.LISTENING:
            visit.refuse(
                OpenFailureCode.ADMINISTRATIVELY_PROHIBITED,
                f"{self.name} is {state.value}",
            )
        elif not self.policy.admits(visit.visitor.address):
            visit.refuse(
                OpenFailureCode.ADMINISTRATIVELY_PROHIBITED,
                f"{self.name} takes no visitors from there",
            )
        elif most is not None and count >= most:
            visit.refuse(
                OpenFailureCode.RESOURCE_SHORTAGE,
                f"{self.name} has {most} connections, and may have no more",
            )
        else:
            self._handler.offer(visit)

    def place_seen_from(self, address: str) -> tuple[str, int]:
        """Return where a visitor came to, as an address of the visitor's family."""
        is_ipv6 = ":" in address
        own = {
            LOOPBACK: "::1" if is_ipv6 else "127.0.0.1",
            ALL_INTERFACES: "::" if is_ipv6 else "0.0.0.0",
        }
        return own.get(self.address, self.address), self.port

    def end_idle(self, now_s: float) -> None:
        """Reset the connections that were idle for too long. One thread only."""
        most_s = self.policy.idle_timeout_s
        if most_s is None:
            return
        with self._changed:
            visits = list(self._visits)
        for visit in visits:
            if visit.has_been_idle_for(now_s) >= most_s:
                visit.abort("idle")

    def begin_close(self) -> bool:
        """Turn visitors away from now on; False if it is closing or closed already."""
        with self._changed:
            if self._state in (ListenerState.CLOSING, ListenerState.CLOSED):
                return False
            self._set_state(ListenerState.CLOSING)
            return True

    def finish_close(self, deadline: float) -> None:
        """Wait for the connections until `deadline`, then reset the rest."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._visits, max(0.0, deadline - time.monotonic())
            )
        self._end("closing")

    def lose(self, lost: ConnectionLost) -> None:
        """The connection is over. The backend resets the relays."""
        with self._changed:
            self._last_error = self._last_error or str(lost)
        self._end("lost")

    def _end(self, why: str) -> None:
        with self._changed:
            if self._state is not ListenerState.CLOSED:
                self._set_state(ListenerState.CLOSED)
            visits = list(self._visits)
        self._handler.close()
        for visit in visits:
            visit.abort(why)
        self._retire_if_done()

    def _retire_if_done(self) -> None:
        with self._changed:
            done = self._state is ListenerState.CLOSED and not self._visits
        if done:
            self.tunnel.retire(self)

    def _check_open(self) -> None:
        if self._state in (ListenerState.CLOSING, ListenerState.CLOSED):
            raise ListenerClosed(f"{self.name} is {self._state.value}: listen anew")

    def _set_state(self, state: ListenerState) -> None:
        if state not in _TABLE[self._state]:
            raise ValueError(f"a listener cannot go from {self._state} to {state}")
        log.info(
            "listener=%s target=%s state=%s was=%s",
            self.name,
            self.target,
            state.value,
            self._state.value,
        )
        self._state = state
        self._changed.notify_all()

    # For the visits.

    def note_accepted(self, visit: Visit) -> None:
        """Count a connection that is about to be confirmed."""
        with self._changed:
            self._live += 1
            self._total += 1

    def note_connected(self, visit: Visit) -> None:
        """Log a connection that stands."""
        if connections_log.isEnabledFor(logging.INFO):
            relay = visit.relay
            connections_log.info(
                "connection opened: listener=%s conn=%d chan=%d visitor=%s port=%d "
                "target=%s",
                self.name,
                visit.number,
                -1 if relay is None else relay.local_id,
                visit.visitor.address,
                visit.visitor.port,
                self.target,
            )

    def note_refused(self, visit: Visit, reason: str, is_error: bool) -> None:
        """Count a visitor that is about to be turned away."""
        # As ssh(1), which says on stderr that it cannot connect to a target.
        log.log(
            logging.WARNING if is_error else logging.INFO,
            "visitor turned away: listener=%s visitor=%s reason=%s",
            self.name,
            visit.visitor.address,
            reason,
        )
        with self._changed:
            self._refused += 1
            if is_error:
                self._errors += 1
                self._last_error = reason
            self._visits.discard(visit)
            self._changed.notify_all()
        self._retire_if_done()

    def note_error(self, error: str) -> None:
        """Count a handler that failed."""
        with self._changed:
            self._errors += 1
            self._last_error = error

    def note_ended(self, visit: Visit, end: RelayEnd) -> None:
        """Count what a connection moved, now that it is over."""
        with self._changed:
            self._live -= 1
            self._bytes_in += end.bytes_in
            self._bytes_out += end.bytes_out
            if end.error is not None and not visit.aborted:
                self._last_error = end.error
            self._visits.discard(visit)
            self._changed.notify_all()
        connections_log.info(
            "connection ended: listener=%s conn=%d visitor=%s port=%d duration_s=%.3f "
            "bytes_in=%d bytes_out=%d reason=%s error=%s",
            self.name,
            visit.number,
            visit.visitor.address,
            visit.visitor.port,
            time.monotonic() - visit.since_s,
            end.bytes_in,
            end.bytes_out,
            visit.aborted_because or end.reason,
            end.error,
        )
        self._retire_if_done()
