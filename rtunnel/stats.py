"""What a relay, a listener and a tunnel have done so far: frozen snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class RelayStats:
    """One visitor's connection."""

    bytes_in: int  # from the visitor to the target
    bytes_out: int  # from the target to the visitor
    ended: bool


@dataclass(frozen=True, slots=True)
class ListenerStats:
    """One listener: counters since `since`, of live and past connections."""

    connections_open: int
    connections_total: int  # accepted, ever
    refused: int  # turned away before a connection stood
    errors: int  # dead targets and handlers that raised
    bytes_in: int  # from visitors to targets
    bytes_out: int  # from targets to visitors
    since: datetime
    last_error: str | None


@dataclass(frozen=True, slots=True)
class TunnelStats:
    """A tunnel: the sums over all its listeners, closed ones too."""

    listeners: int  # that are not closed
    connections_open: int
    connections_total: int
    refused: int
    errors: int
    bytes_in: int
    bytes_out: int
    since: datetime
    last_error: str | None
    backend: str
