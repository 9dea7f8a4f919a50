"""One server: connect, open its ports, notice the end, wait, and again.

One thread does it all, one step after the other; others tell it what changed and wake
it. What takes long in it: connecting (the thread is left to itself when nobody wants
the server any more) and requests to the server, which has keepalives against silence.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from enum import Enum
from typing import Final

from rtunnel.addresses import parse_destination
from rtunnel.errors import RTunnelError
from rtunnel.ssh.connect import open_transport
from rtunnel.status.model import ConnectionInfo, ListenerRow, now, of_tunnel
from rtunnel.supervisor.config import ServerConfig, TunnelConfig
from rtunnel.supervisor.health import HealthChecks
from rtunnel.supervisor.logins import Logins
from rtunnel.supervisor.pacing import Pace, Streak, trouble_of
from rtunnel.supervisor.port import Port, PortState
from rtunnel.tunnel import Tunnel

log = logging.getLogger("rtunnel.supervisor")

# Ports that are asked for at once: each is a round trip or more.
REQUESTS_AT_ONCE: Final = 8
# A failed login costs 5 s of PerSourcePenalties, so that they never add up.
HURRIED_GAP_S: Final = 10.0


class ServerState(Enum):
    """What the connection to a server does now; the values are what people see."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


_TABLE: Final = {
    ServerState.WAITING: frozenset({ServerState.CONNECTING, ServerState.CLOSED}),
    ServerState.CONNECTING: frozenset(
        {ServerState.CONNECTED, ServerState.WAITING, ServerState.CLOSED}
    ),
    ServerState.CONNECTED: frozenset({ServerState.WAITING, ServerState.CLOSED}),
    ServerState.CLOSED: frozenset[ServerState](),
}


class Server:
    """Keeps the connection to one server, and the ports on it. Any thread.

    `on_released` is called, on its thread, when ports that were not wanted any more are
    free: another one may wait for them.
    """

    def __init__(
        self,
        name: str,
        config: ServerConfig,
        checks: HealthChecks,
        logins: Logins,
        on_released: Callable[[], None],
    ) -> None:
        # Read-only after construction.
        self.name = name
        self._checks = checks
        self._logins = logins
        self._on_released = on_released
        self._thread = threading.Thread(
            target=self._run, name=f"rtunnel-server-{name}", daemon=True
        )
        # It has been tried once: everything listens, or it is known why not.
        self.settled = threading.Event()
        # Only for the thread.
        self._streak = Streak()
        self._stands_since_s: float | None = None  # of the connection that was last
        # Protected by _changed; nothing is called while it is held.
        self._changed = threading.Condition()
        self._config = config
        self._woken = False
        self._hurried = False
        self._ending = False
        self._state = ServerState.WAITING
        self._since: datetime = now()
        self._ports: dict[str, Port] = {}
        self._tunnel: Tunnel | None = None
        self._connects = 0
        self._last_error: str | None = None

    @property
    def config(self) -> ServerConfig:
        """What it was told last."""
        return self._config

    @property
    def state(self) -> ServerState:
        """What the connection does now."""
        return self._state

    def start(self) -> None:
        """Begin to keep it up."""
        self._thread.start()

    def apply(self, config: ServerConfig) -> None:
        """Keep other tunnels from now on, on the same connection. Never blocks."""
        assert config.connects_like(self._config)
        with self._changed:
            self._config = config
        self._wake()

    def hurry(self) -> None:
        """Cut the waits short, as somebody may have put right what was wrong.

        A server is not tried more often than every `HURRIED_GAP_S`. Never blocks.
        """
        with self._changed:
            self._hurried = True
        self._wake()

    def end(self) -> None:
        """Let go of it: ports and connection are closed soon. Never blocks."""
        with self._changed:
            self._ending = True
        self._wake()
        self._logins.wake()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended; False after the time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_working(self) -> bool:
        """Whether its thread is there, as it should be."""
        return self._thread.ident is None or self._thread.is_alive() or self._ending

    @property
    def tunnel(self) -> Tunnel | None:
        """The tunnel, while it stands."""
        with self._changed:
            return self._tunnel

    def info(self) -> ConnectionInfo:
        """Return what there is to say. Never blocks."""
        with self._changed:
            config, tunnel, ports = self._config, self._tunnel, dict(self._ports)
            state, since, last_error = self._state, self._since, self._last_error
            reconnects = max(self._connects - 1, 0)
        rows = []
        for name, wanted in config.tunnels.items():
            port = ports.get(name)
            if port is not None and port.config == wanted:
                rows.append(port.row())
            else:  # what was changed just now
                waits = PortState.WAITING.value
                rows.append(ListenerRow(name, str(wanted.listen), wanted.target, waits))
        live = None if tunnel is None else of_tunnel(self.name, tunnel)
        return ConnectionInfo(
            name=self.name,
            destination=config.destination,
            state=state.value,
            backend=live.backend if live else None,
            cipher=live.cipher if live else None,
            rtt_s=live.rtt_s if live else None,
            rtt_best_s=live.rtt_best_s if live else None,
            rekeys=live.rekeys if live else 0,
            reconnects=reconnects,
            since=since,
            last_error=last_error,
            listeners=tuple(rows),
        )

    # The thread.

    def _run(self) -> None:
        try:
            self._reconcile(self._config.tunnels)
            while not self._ending:
                try:
                    self._connect_and_serve()
                except Exception as error:
                    self._failed(error)
        finally:
            for port in self._ports.values():
                port.close()
            with self._changed:
                self._set_state(ServerState.CLOSED)
            self.settled.set()

    def _failed(self, error: Exception) -> None:
        """Say what went wrong, and wait as long as that deserves."""
        pace = self._config.retry
        since_s, self._stands_since_s = self._stands_since_s, None
        stood = since_s is not None
        if since_s is not None and time.monotonic() - since_s >= pace.stable_after_s:
            self._streak.end()
        wait_s = self._streak.wait_s(trouble_of(error), pace, random.random)
        with self._changed:
            self._last_error = str(error) or repr(error)
            self._set_state(ServerState.WAITING)
        if self._ending:
            return
        log.warning(
            "connection lost: server=%s retry_in_s=%.1f reason=%s"
            if stood
            else "not connected: server=%s retry_in_s=%.1f reason=%s",
            self.name,
            wait_s,
            error,
            exc_info=None if isinstance(error, RTunnelError) else error,
        )
        self.settled.set()
        failed_s = time.monotonic()
        while not self._ending and (left_s := failed_s + wait_s - time.monotonic()) > 0:
            self._sleep(left_s)
            self._reconcile(self._config.tunnels)
            if self._take_hurry():
                wait_s = min(wait_s, HURRIED_GAP_S)

    def _connect_and_serve(self) -> None:
        """Connect, and keep the ports until the end; raise what ended it."""
        config = self._config
        where = parse_destination(config.destination)
        server = f"{where.host}:{where.port}"  # whoever logs in there
        with self._logins.turn(server, lambda: self._ending) as has_turn:
            if not has_turn:
                return
            with self._changed:
                self._set_state(ServerState.CONNECTING)
            transport = open_transport(config.destination, **config.connect_options)
        try:
            tunnel = Tunnel(transport)
        except BaseException:
            transport.close()
            raise
        error: Exception | None = None
        try:
            if not self._ending:
                self._serve(tunnel)
        except Exception as raised:
            error = raised
            raise
        finally:
            with self._changed:
                self._tunnel = None
                self._set_state(ServerState.WAITING)
            tunnel.close()
            for port in self._ports.values():
                port.lose(error)

    def _serve(self, tunnel: Tunnel) -> None:
        """Keep what is wanted on this connection. Raises when it is over."""
        tunnel.connection.add_end_callback(lambda lost: self._wake())
        with self._changed:
            self._tunnel = tunnel
            self._connects += 1
            self._last_error = None
            self._set_state(ServerState.CONNECTED)
        self._stands_since_s = time.monotonic()
        log.info(
            "connected: server=%s destination=%s backend=%s",
            self.name,
            self._config.destination,
            tunnel.backend,
        )
        while not self._ending:
            lost = tunnel.connection.end
            if lost is not None:
                raise lost
            self._reconcile(self._config.tunnels)
            if self._take_hurry():
                for port in self._ports.values():
                    port.hurry()
            self._open_due(tunnel, self._config.retry)
            self.settled.set()
            self._sleep(self._until_next_s())

    def _reconcile(self, wanted: Mapping[str, TunnelConfig]) -> None:
        """Close what is not wanted any more, or not like that; note what is new."""
        released = False
        for name, port in list(self._ports.items()):
            config = wanted.get(name)
            if config is None or not port.take_over(config):
                port.close()
                released = True
                with self._changed:
                    del self._ports[name]
        if released:
            self._on_released()
        for name, config in wanted.items():
            if name not in self._ports:
                port = Port(self.name, name, config, self._checks)
                with self._changed:
                    self._ports[name] = port

    def _open_due(self, tunnel: Tunnel, pace: Pace) -> None:
        now_s = time.monotonic()
        due = [port for port in self._ports.values() if port.due_in_s(now_s) == 0.0]
        if len(due) < 2:
            for port in due:
                port.open(tunnel, pace)
            return
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, "rtunnel-listen") as pool:
            for asked in [pool.submit(port.open, tunnel, pace) for port in due]:
                asked.result()

    def _until_next_s(self) -> float | None:
        now_s = time.monotonic()
        waits = [port.due_in_s(now_s) for port in self._ports.values()]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _sleep(self, limit_s: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._woken, limit_s)
            self._woken = False

    def _take_hurry(self) -> bool:
        with self._changed:
            hurried, self._hurried = self._hurried, False
        return hurried

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _set_state(self, state: ServerState) -> None:
        """Change the state; with _changed held."""
        if state is self._state:
            return
        if state not in _TABLE[self._state]:
            raise ValueError(f"a server cannot go from {self._state} to {state}")
        self._state = state
        self._since = now()
