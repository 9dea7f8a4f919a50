"""What the clients of the gateway look like in a `ProcessStatus`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rtunnel.gateway.listeners import Listeners, VisitorListener
from rtunnel.status import model

if TYPE_CHECKING:
    from rtunnel.gateway.session import Session


def connection_infos(
    sessions: Iterable[Session], listeners: Listeners
) -> tuple[model.ConnectionInfo, ...]:
    """Return what is known of the clients that have logged in, the oldest first.

    Never blocks. Any thread. A client that comes back has the name that it had:
    metrics go on, and do not begin anew with each port that it comes from.
    """
    seen: Counter[str] = Counter()
    infos = []
    for session in sorted(sessions, key=lambda each: each.since):
        if not session.is_authenticated or not session.is_alive():
            continue
        name = f"{session.login.user}@{session.origin[0]}"
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name} #{seen[name]}"
        infos.append(_info(name, session, listeners.of(session)))
    return tuple(infos)


def _info(
    name: str, session: Session, listeners: Iterable[VisitorListener]
) -> model.ConnectionInfo:
    vitals = session.connection.vitals()
    destination = f"{session.login.user}@{session.address}"
    return model.ConnectionInfo(
        name=name,
        destination=destination,
        state=model.CONNECTED,
        backend=session.connection.backend.name,
        cipher=vitals.cipher or None,
        rtt_s=vitals.rtt_s,
        rtt_best_s=vitals.rtt_best_s,
        rekeys=vitals.rekeys,
        since=session.since,
        listeners=tuple(_row(listener, destination) for listener in listeners),
    )


def _row(listener: VisitorListener, target: str) -> model.ListenerRow:
    count = listener.traffic.count()
    return model.ListenerRow(
        name=str(listener),
        bind=str(listener),
        target=target,
        state=model.LISTENING,
        connections_open=count.connections_open,
        connections_total=count.connections_total,
        refused=count.refused,
        errors=count.errors,
        bytes_in=count.bytes_in,
        bytes_out=count.bytes_out,
        stalled=count.stalled,
        last_error=count.last_error,
    )
