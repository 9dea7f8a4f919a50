"""Services of a session: each is one port on the server, a handler, and a life.

A new service is one module with a class that has what `Service` says. It is started
when the session runs, before its command; stopped before the session is suspended or
terminated, and when the connection is lost; and started again after a resume, on
whatever ports the session has then. So a service keeps between `stop` and `start` what
has to come back (shares, say), and nothing else: no port, thread, process, mount or
file outlives `stop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from rtunnel.errors import ForwardRefused, RTunnelError
from x2go_session import events
from x2go_session.errors import X2GoError
from x2go_session.session import Session

log = logging.getLogger("x2go_session.services")


class Service(Protocol):
    """What a session starts and stops."""

    @property
    def name(self) -> str:
        """What events and logs call it: "sound", "sharing", "printing", "mimebox"."""

    @property
    def port(self) -> int:
        """Its port on the server while it runs; 0 if it has none of its own."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What the session's command gets into its environment; valid once started."""

    def start(self, session: Session) -> None:
        """Open the port and do what makes the service work; may block.

        Raises `X2GoError`, `RTunnelError` or OSError when it cannot; nothing is left
        behind then. Failures later on are `ServiceFailed` events.
        """

    def stop(self) -> None:
        """End it. The connection may be gone already: raises nothing, may block."""


class ShareKind(Enum):
    """What the server takes a shared folder for."""

    FOLDER = ""
    REMOVABLE = "rem"
    PRINT_SPOOL = "__PRINT_SPOOL_"
    MIMEBOX = "__MIMEBOX_SPOOL_"


class FileEventKind(Enum):
    """What the server did to a file of a shared folder."""

    CLOSED = "closed"  # written, and complete now
    RENAMED = "renamed"  # and complete, as far as its writer is concerned
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A file of a shared folder, as our SFTP server saw it change."""

    kind: FileEventKind
    path: Path  # after a rename, the new name


class FolderSharing(Protocol):
    """What printing and MIME box need of folder sharing: a folder that tells them.

    `x2go_session.services.sharing.Sharing` is one.
    """

    @property
    def port(self) -> int:
        """Its port on the server while it runs, else 0."""

    def share(
        self,
        folder: Path,
        *,
        kind: ShareKind = ShareKind.FOLDER,
        read_only: bool = False,
        on_file: Callable[[FileEvent], object] | None = None,
    ) -> None:
        """Mount a local folder on the server; again after every resume.

        `on_file` is called on a thread of the SFTP server: it may not keep it. Blocks
        until it is mounted. Raises `ServiceError`. Before `start` it is remembered,
        and mounted then.
        """

    def unshare(self, folder: Path) -> None:
        """Unmount it, and forget it. Blocks. Raises `ServiceError`."""


class Services:
    """The services of one session, in the order in which they are started."""

    def __init__(self, services: Iterable[Service], stream: events.Events) -> None:
        self._services = list(services)
        self._events = stream
        self._running: list[Service] = []

    @property
    def running(self) -> list[Service]:
        """Those that work now."""
        return list(self._running)

    @property
    def environment(self) -> dict[str, str]:
        """What the running services want in the environment of the command."""
        found: dict[str, str] = {}
        for service in self._running:
            found |= service.environment
        return found

    def start(self, session: Session) -> None:
        """Start all; one that cannot is an event, and the others go on. Blocks."""
        for service in self._services:
            try:
                service.start(session)
            except (X2GoError, RTunnelError, OSError) as error:
                log.warning("service failed: name=%s error=%s", service.name, error)
                self._report(session, service, error)
            else:
                self._running.append(service)
                self._events.emit(
                    events.ServiceStarted(
                        session=session.name, service=service.name, port=service.port
                    )
                )

    def stop(self) -> None:
        """Stop those that run, the last one first. Blocks."""
        while self._running:
            self._running.pop().stop()

    def _report(self, session: Session, service: Service, error: Exception) -> None:
        if isinstance(error, ForwardRefused):
            self._events.emit(
                events.ForwardRefused(
                    session=session.name,
                    service=service.name,
                    # The one it asked for: session.ports has them by their services.
                    port=getattr(session.ports, service.name, 0),
                    reason=str(error),
                )
            )
        self._events.emit(
            events.ServiceFailed(
                session=session.name, service=service.name, reason=str(error)
            )
        )
