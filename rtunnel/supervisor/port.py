"""One tunnel of a server: its listener while there is one, and what to do without."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from enum import Enum
from typing import Final

from rtunnel.addresses import Bind, TcpBind
from rtunnel.errors import ConfigError, ForwardRefused, ListenerClosed, PortInUse
from rtunnel.stats import ListenerStats
from rtunnel.status.model import ListenerRow, of_listener
from rtunnel.supervisor.config import TunnelConfig
from rtunnel.supervisor.health import Check, HealthChecks
from rtunnel.supervisor.pacing import Pace, Streak, Trouble
from rtunnel.tunnel import Listener, Tunnel

log = logging.getLogger("rtunnel.supervisor")


class PortState(Enum):
    """What a tunnel does now; the values are what people are shown."""

    WAITING = "waiting"  # for the connection, or for its turn
    LISTENING = "listening"
    PAUSED = "paused"  # listens, and turns visitors away: the target is not well
    TAKEN = "port taken"
    REFUSED = "refused"
    CLOSED = "closed"


_TABLE: Final = {
    PortState.WAITING: frozenset(
        {
            *(PortState.LISTENING, PortState.PAUSED, PortState.TAKEN),
            *(PortState.REFUSED, PortState.CLOSED),
        }
    ),
    PortState.LISTENING: frozenset(
        {PortState.PAUSED, PortState.WAITING, PortState.CLOSED}
    ),
    PortState.PAUSED: frozenset(
        {PortState.LISTENING, PortState.WAITING, PortState.CLOSED}
    ),
    PortState.TAKEN: frozenset({PortState.WAITING, PortState.CLOSED}),
    PortState.REFUSED: frozenset({PortState.WAITING, PortState.CLOSED}),
    PortState.CLOSED: frozenset[PortState](),
}
_STATE_OF: Final = {
    Trouble.PORT_TAKEN: PortState.TAKEN,
    Trouble.FORWARD_REFUSED: PortState.REFUSED,
}


class Port:
    """Keeps one tunnel open on whatever connection there is.

    `open`, `lose` and `close` are for the thread of the server; the rest may be
    called from any.
    """

    def __init__(
        self, server: str, name: str, config: TunnelConfig, checks: HealthChecks
    ) -> None:
        # Read-only after construction.
        self.name = name
        self._label = f"{server}.{name}"
        self._checks = checks
        # Only for the thread of the server.
        self._streak = Streak()
        self._due_s = 0.0
        self._chosen_port = 0
        # Protected by _lock; what is called while it is held never blocks.
        self._lock = threading.Lock()
        self._state = PortState.WAITING
        self._unwell: str | None = None  # why the target is thought not to work
        self._listener: Listener | None = None
        self._past = _Past()
        self._last_error: str | None = None
        self._config = config
        self._check: Check | None = None
        self._checks_so_far = 0
        self._check_as(config)

    @property
    def config(self) -> TunnelConfig:
        """What it was told last."""
        return self._config

    @property
    def state(self) -> PortState:
        """What it does now."""
        return self._state

    def take_over(self, config: TunnelConfig) -> bool:
        """Go on by another configuration, if the same listener serves both.

        How a target is checked may change; visitors do not notice.
        """
        if config.listens_like(self._config):
            if config.health != self._config.health:
                self._check_as(config)
            self._config = config
            return True
        return False

    def hurry(self) -> None:
        """Do not wait any longer before the server is asked again."""
        self._due_s = 0.0

    def due_in_s(self, now_s: float) -> float | None:
        """Return when to call `open` next; None if it listens or is over."""
        if self._state in (PortState.WAITING, PortState.TAKEN, PortState.REFUSED):
            return max(self._due_s - now_s, 0.0)
        return None

    def open(self, tunnel: Tunnel, pace: Pace) -> None:
        """Ask the server to listen; if it refuses, say when to ask again.

        Waits for the server. Raises `ConnectionLost` and `RequestTimeout`.
        """
        with self._lock:
            if self._state is PortState.CLOSED:
                return
            # A visit to a port of our own dead session is a sign of life to its sshd
            # (seen with OpenSSH 9.2): it would be held for as long as we look.
            diagnose = self._state is not PortState.TAKEN
            self._set_state(PortState.WAITING)
            self._let_go()
        try:
            listener = self._listen_as_before(tunnel) or self._listen(
                tunnel, self.config.listen, diagnose
            )
        except (ForwardRefused, ConfigError, TypeError, ValueError) as error:
            # The others on this connection have nothing to do with it.
            taken = not diagnose and isinstance(error, ForwardRefused)
            self._refused(None if taken else error, pace)
            return
        self._streak.end()
        self._chosen_port = listener.port
        with self._lock:
            self._listener = listener
            self._set_state(PortState.LISTENING)
            if self._unwell is not None:
                self._pause(listener)
        log.info("listens: tunnel=%s forward=%s", self._label, listener)

    def _listen(self, tunnel: Tunnel, bind: Bind, diagnose: bool) -> Listener:
        return tunnel.listen(
            bind,
            to=self.config.to,
            name=self.name,
            diagnose=diagnose,
            **self.config.listen_options,
        )

    def _listen_as_before(self, tunnel: Tunnel) -> Listener | None:
        """Ask for the port that the server chose last, which visitors may know."""
        bind = self.config.listen
        if not (isinstance(bind, TcpBind) and bind.port == 0 and self._chosen_port):
            return None
        try:
            again = TcpBind(bind.address, self._chosen_port)
            return self._listen(tunnel, again, diagnose=False)
        except ForwardRefused:
            return None

    def _refused(self, error: Exception | None, pace: Pace) -> None:
        """Say when to ask again; None is for a port that is taken, as it was before."""
        trouble = Trouble.PORT_TAKEN
        if error is not None and not isinstance(error, PortInUse):
            trouble = Trouble.FORWARD_REFUSED
        wait_s = self._streak.wait_s(trouble, pace, random.random)
        self._due_s = time.monotonic() + wait_s
        with self._lock:
            if error is not None:
                self._last_error = str(error)
            self._set_state(_STATE_OF[trouble])
        log.warning(
            "does not listen: tunnel=%s retry_in_s=%.1f reason=%s",
            self._label,
            wait_s,
            error or "the port is still taken",
        )

    def lose(self, error: Exception | None) -> None:
        """The connection is over; on the next one, it is opened anew."""
        self._streak.end()
        self._due_s = 0.0
        with self._lock:
            if error is not None:
                self._last_error = str(error)
            if self._state is not PortState.CLOSED:
                self._set_state(PortState.WAITING)

    def close(self) -> None:
        """Listen no more, and end its check. Waits for the server."""
        with self._lock:
            if self._state is PortState.CLOSED:
                return
            self._set_state(PortState.CLOSED)
            listener = self._listener
        if self._check is not None:
            self._check.cancel()
        if listener is not None:
            listener.close()

    def row(self) -> ListenerRow:
        """Return what there is to say, with the counters of all listeners so far."""
        with self._lock:
            listener, past = self._listener, self._past
            state, unwell, last_error = self._state, self._unwell, self._last_error
        row = ListenerRow(
            self.name, str(self.config.listen), self.config.target, state.value
        )
        if listener is not None:
            row = dataclasses.replace(
                of_listener(listener), name=self.name, state=state.value
            )
        return dataclasses.replace(
            row,
            connections_total=row.connections_total + past.connections_total,
            refused=row.refused + past.refused,
            errors=row.errors + past.errors,
            bytes_in=row.bytes_in + past.bytes_in,
            bytes_out=row.bytes_out + past.bytes_out,
            last_error=unwell or row.last_error or last_error,
        )

    def _check_as(self, config: TunnelConfig) -> None:
        """Check the target by this from now on; it is well until found otherwise."""
        if self._check is not None:
            self._check.cancel()
            self._check = None
        with self._lock:
            self._checks_so_far += 1
            number = self._checks_so_far
            self._unwell = None
            if self._state is PortState.PAUSED:
                self._resume()
        target = config.address
        if config.health is not None and target is not None:
            self._check = self._checks.start(
                target,
                config.health,
                lambda healthy, reason: self._on_health(number, healthy, reason),
            )

    def _on_health(self, number: int, healthy: bool, reason: str) -> None:
        """The target came or went. On the thread of the checks."""
        with self._lock:
            if number != self._checks_so_far or self._state is PortState.CLOSED:
                return  # the last word of a check that is over
            self._unwell = None if healthy else reason
            if self._state is PortState.PAUSED and healthy:
                self._resume()
            elif self._state is PortState.LISTENING and not healthy:
                assert self._listener is not None
                self._pause(self._listener)
        log.log(
            logging.INFO if healthy else logging.WARNING,
            "target is back: tunnel=%s target=%s reason=%s"
            if healthy
            else "target is not well: tunnel=%s target=%s reason=%s",
            self._label,
            self._config.target,
            reason,
        )

    # With the lock held.

    def _pause(self, listener: Listener) -> None:
        try:
            listener.pause()
        except ListenerClosed:
            return  # the connection has just ended; `lose` follows
        self._set_state(PortState.PAUSED)

    def _resume(self) -> None:
        assert self._listener is not None
        try:
            self._listener.resume()
        except ListenerClosed:
            return
        self._set_state(PortState.LISTENING)

    def _let_go(self) -> None:
        """Keep the counters of a listener that is over."""
        if self._listener is not None:
            self._past = self._past.plus(self._listener.stats())
            self._listener = None

    def _set_state(self, state: PortState) -> None:
        if state is self._state:
            return
        if state not in _TABLE[self._state]:
            raise ValueError(f"a port cannot go from {self._state} to {state}")
        self._state = state


@dataclasses.dataclass(frozen=True, slots=True)
class _Past:
    """The counters of listeners that are over."""

    connections_total: int = 0
    refused: int = 0
    errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def plus(self, stats: ListenerStats) -> _Past:
        return _Past(
            self.connections_total + stats.connections_total,
            self.refused + stats.refused,
            self.errors + stats.errors,
            self.bytes_in + stats.bytes_in,
            self.bytes_out + stats.bytes_out,
        )
