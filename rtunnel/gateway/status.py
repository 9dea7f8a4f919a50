"""What a client of the gateway looks like in a `ProcessStatus`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rtunnel.gateway.listeners import VisitorListener
from rtunnel.status import model

if TYPE_CHECKING:
    from rtunnel.gateway.session import Session


def connection_info(
    session: Session, listeners: Iterable[VisitorListener]
) -> model.ConnectionInfo:
    """Return what is known of a client that has logged in. Never blocks. Any thread."""
    return model.ConnectionInfo(
        name=str(session),
        destination=f"{session.login.user}@{session.address}",
        state=model.CONNECTED,
        backend=session.backend,
        cipher=session.transport.remote_cipher,
        since=session.since,
        listeners=tuple(_row(session, listener) for listener in listeners),
    )


def _row(session: Session, listener: VisitorListener) -> model.ListenerRow:
    count = listener.traffic.count()
    return model.ListenerRow(
        name=str(listener),
        bind=str(listener),
        target=f"{session.login.user}@{session.address}",
        state=model.LISTENING,
        connections_open=count.connections_open,
        connections_total=count.connections_total,
        refused=count.refused,
        errors=count.errors,
        bytes_in=count.bytes_in,
        bytes_out=count.bytes_out,
        last_error=count.last_error,
    )
