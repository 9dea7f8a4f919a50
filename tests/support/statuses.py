"""Statuses for the tests: made up ones, and how to ask a server for them."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from datetime import UTC, datetime

from rtunnel.status.model import (
    ConnectionInfo,
    ListenerRow,
    ProcessStatus,
    of_process,
)

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
# What a server or a visitor may have written.
HOSTILE = "</td><script>document.title='owned'</script>\x1b[31m\nrtunnel: forged"


def row(name: str = "web", state: str = "listening", **more: object) -> ListenerRow:
    """Return a listener that does well, but for what is given."""
    return ListenerRow(name, "8080", "localhost:3000", state, **more)  # type: ignore[arg-type]


def connection(
    *listeners: ListenerRow, state: str = "connected", **more: object
) -> ConnectionInfo:
    """Return a connection with these listeners."""
    return ConnectionInfo(
        "home",
        "user@host:22",
        state,
        listeners=listeners,
        **more,  # type: ignore[arg-type]
    )


def process(*connections: ConnectionInfo) -> ProcessStatus:
    """Return a process with these connections."""
    return of_process("open", STARTED, connections)


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    text: str


def get(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask the server on this port of 127.0.0.1."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        link.request(method, path, headers=headers)
        answer = link.getresponse()
        return Answer(
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read().decode(),
        )
    finally:
        link.close()
