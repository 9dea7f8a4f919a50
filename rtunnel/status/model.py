"""What is told of a running process: frozen rows, whoever shows them.

Whoever runs tunnels has a function that makes a `ProcessStatus` of what is true now.
The page, the metrics and the terminal read nothing else, so that all of them say the
same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rtunnel._version import __version__
from rtunnel.addresses import TcpBind
from rtunnel.tunnel import Listener, Tunnel

# States that mean "works": of a connection, and of a listener.
CONNECTED: Final = "connected"
LISTENING: Final = "listening"


@dataclass(frozen=True, slots=True)
class ListenerRow:
    """One listener, or one that should be there: its state says so."""

    name: str
    bind: str  # where the server listens, with the port it chose
    target: str
    state: str  # "listening", "paused", "port taken", ...
    connections_open: int = 0
    connections_total: int = 0  # accepted, ever
    refused: int = 0
    errors: int = 0
    bytes_in: int = 0  # from visitors to targets
    bytes_out: int = 0  # from targets to visitors
    stalled: int = 0  # connections that wait for window of the far side, right now
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One SSH connection: to a server; or, in a gateway, of a client."""

    name: str
    destination: str  # user@host:port
    state: str  # "connected", "connecting", "waiting", "closed", ...
    backend: str | None = None  # of a live connection
    cipher: str | None = None
    rtt_s: float | None = None  # None: not measured
    rekeys: int = 0
    reconnects: int = 0
    since: datetime | None = None  # when it came into this state
    last_error: str | None = None
    listeners: tuple[ListenerRow, ...] = ()
    rtt_best_s: float | None = None  # of this connection: the path without queues


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process: what it is, whether all of it works, and its connections."""

    kind: str  # "open", "run", "gateway"
    pid: int
    version: str
    started: datetime
    ready: bool  # every listener that should be there listens
    connections: tuple[ConnectionInfo, ...]
    url: str | None = None  # of its page, for who finds it by its socket


# Cheap, never blocks, called from any thread.
StatusSource = Callable[[], ProcessStatus]
# Says what is not ready, a line for each; may block for a few seconds. Any thread.
ReadyCheck = Callable[[], Sequence[str]]


def of_process(
    kind: str,
    started: datetime,
    connections: tuple[ConnectionInfo, ...],
    *,
    ready: bool | None = None,
) -> ProcessStatus:
    """Return the status of this process; it is ready if all that it has works.

    Pass `ready` where that is not so: no listener at all is fine for a gateway.
    """
    if ready is None:
        ready = bool(connections) and all(map(works, connections))
    return ProcessStatus(kind, os.getpid(), __version__, started, ready, connections)


def works(connection: ConnectionInfo) -> bool:
    """Say whether a connection stands and each of its listeners listens."""
    return connection.state == CONNECTED and all(
        row.state == LISTENING for row in connection.listeners
    )


def not_ready(status: ProcessStatus) -> list[str]:
    """Say what is not ready, a line for each; empty if all is."""
    lines = []
    for connection in status.connections:
        if connection.state != CONNECTED:
            lines.append(_line(connection.name, connection))
        lines += [
            _line(f"{connection.name} {row.bind}", row)
            for row in connection.listeners
            if row.state != LISTENING
        ]
    if not status.ready and not lines:
        lines.append("no connection")
    return [] if status.ready else lines


def _line(what: str, row: ConnectionInfo | ListenerRow) -> str:
    reason = f": {row.last_error}" if row.last_error else ""
    return f"{what}: {row.state}{reason}"


def of_tunnel(
    name: str,
    tunnel: Tunnel,
    *,
    destination: str = "",
    reconnects: int = 0,
    last_error: str | None = None,
) -> ConnectionInfo:
    """Return what a live tunnel tells of itself. Never blocks. Any thread."""
    stats = tunnel.stats()
    vitals = tunnel.connection.vitals()
    end = tunnel.connection.end
    return ConnectionInfo(
        name=name,
        destination=destination,
        state=CONNECTED if end is None else "closed",
        backend=tunnel.backend,
        cipher=vitals.cipher or None,
        rtt_s=vitals.rtt_s,
        rtt_best_s=vitals.rtt_best_s,
        rekeys=vitals.rekeys,
        reconnects=reconnects,
        since=stats.since,
        last_error=str(end) if end is not None else last_error,
        listeners=tuple(of_listener(listener) for listener in tunnel.listeners),
    )


def of_listener(listener: Listener) -> ListenerRow:
    """Return what a listener tells of itself. Never blocks. Any thread."""
    stats = listener.stats()
    bind = listener.bind
    if isinstance(bind, TcpBind):
        bind = TcpBind(bind.address, listener.port)  # port 0: what the server chose
    return ListenerRow(
        name=listener.name,
        bind=str(bind),
        target=listener.target,
        state=listener.state.value,
        connections_open=stats.connections_open,
        connections_total=stats.connections_total,
        refused=stats.refused,
        errors=stats.errors,
        bytes_in=stats.bytes_in,
        bytes_out=stats.bytes_out,
        stalled=listener.stalled,
        last_error=stats.last_error,
    )


def now() -> datetime:
    """Return the time of now, as all times in here are: in UTC."""
    return datetime.now(UTC)


def to_json(status: ProcessStatus) -> dict[str, Any]:
    """Return a status as JSON has it: times as ISO 8601 texts, in UTC."""
    return dict(asdict(status, dict_factory=_json_dict))


def _json_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        key: value.isoformat(timespec="milliseconds")
        if isinstance(value, datetime)
        else value
        for key, value in pairs
    }


def from_json(data: dict[str, Any]) -> ProcessStatus:
    """Read what `to_json` made; keys that are not known are left out.

    Raises ValueError if it is not a status.
    """
    try:
        connections = tuple(map(_connection, data["connections"]))
        status: ProcessStatus = _fill(
            ProcessStatus, data | {"connections": connections}
        )
        return status
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a status of rtunnel: {error!r}") from None


def _connection(data: dict[str, Any]) -> Any:
    rows = tuple(_fill(ListenerRow, row) for row in data["listeners"])
    return _fill(ConnectionInfo, data | {"listeners": rows})


def _fill(kind: type[Any], data: dict[str, Any]) -> Any:
    values = {key: data[key] for key in kind.__dataclass_fields__ if key in data}
    for key in ("started", "since"):
        if isinstance(values.get(key), str):
            values[key] = datetime.fromisoformat(values[key])
    return kind(**values)
