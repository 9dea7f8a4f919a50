"""What a session has to tell whoever shows it to its user: one typed stream.

`Events.subscribe` gets every event as it happens. Some are questions: a subscriber
answers one by `question.answer(...)`, at once or later; where nobody does in time, the
question's default holds.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

log = logging.getLogger("x2go_session.events")

Answer = TypeVar("Answer")
# A person has to read and decide, perhaps after coming back to the desk.
QUESTION_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened; `session` is its name, or empty where there is none yet."""

    session: str = ""


# The life of a session.


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A long step of starting or resuming: 0 to 100; -1 when it failed."""

    percent: int
    step: str


@dataclass(frozen=True, kw_only=True)
class SessionStarted(Event):
    """The session runs, and its windows are shown here."""

    display: int
    ports: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class SessionResumed(SessionStarted):
    """A suspended session runs again; its ports may be others than before."""


@dataclass(frozen=True, kw_only=True)
class SessionSuspended(Event):
    """The session waits on the server; `by_us` tells whether we asked for it."""

    by_us: bool


@dataclass(frozen=True, kw_only=True)
class SessionTakenOver(Event):
    """Another client resumed the session: its windows are there now."""


@dataclass(frozen=True, kw_only=True)
class SessionTerminated(Event):
    """The session is over; `by_us` tells whether we asked for it.

    `message` is what its command wrote last, where that is still known.
    """

    by_us: bool
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class SessionFailed(Event):
    """The session could not be started or resumed, or broke."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ConnectionDied(Event):
    """The connection to the server is lost; the session goes on there, suspended."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ConnectionRestored(Event):
    """The server is connected to again; the session is resumed next."""


@dataclass(frozen=True, kw_only=True)
class CommandMissing(Event):
    """The program that the session is to run is not installed on the server."""

    command: str


@dataclass(frozen=True, kw_only=True)
class DesktopSharingDenied(Event):
    """The owner of a desktop refused to share it, or could not be asked."""

    desktop: str


@dataclass(frozen=True, kw_only=True)
class GraphicsFailed(Event):
    """nxproxy cannot reach the session's display; `subsystem` says whose tunnel."""

    host: str
    port: int
    subsystem: str
    reason: str


# Sessions that a client knows, but does not show now.


@dataclass(frozen=True, kw_only=True)
class SessionFound(Event):
    """The session was running already when its server was connected to."""


@dataclass(frozen=True, kw_only=True)
class SessionStartedElsewhere(Event):
    """Another client started the session."""


@dataclass(frozen=True, kw_only=True)
class DesktopMissing(Event):
    """A desktop that is to be shared is not there, or not any more."""

    desktop: str


@dataclass(frozen=True, kw_only=True)
class DesktopListLate(Event):
    """The server did not list its desktops in time."""


@dataclass(frozen=True, kw_only=True)
class FilesRefused(Event):
    """The server has no SFTP for us, and so no session can start."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class BrokerUnreachable(Event):
    """The session broker cannot be reached, or refuses us."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class LoginWanted(Event):
    """A profile is to be connected by itself, but needs its user for that."""


# Services.


@dataclass(frozen=True, kw_only=True)
class ServiceStarted(Event):
    """A service works; `port` is its port on the server, 0 if it has none."""

    service: str
    port: int = 0


@dataclass(frozen=True, kw_only=True)
class ServiceFailed(Event):
    """A service does not work; the session goes on without it."""

    service: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ForwardRefused(Event):
    """The server will not listen on the port of a service."""

    service: str
    port: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class FolderShared(Event):
    """A local folder is mounted on the server."""

    folder: Path
    mount_point: str


@dataclass(frozen=True, kw_only=True)
class FolderUnshared(Event):
    """A local folder is not mounted any more."""

    folder: Path


@dataclass(frozen=True, kw_only=True)
class FolderNotShared(Event):
    """A local folder could not be mounted."""

    folder: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class PrintJobArrived(Event):
    """A document arrived for printing here."""

    file: Path
    title: str


@dataclass(frozen=True, kw_only=True)
class PrintJobDone(Event):
    """A document was viewed, saved or printed; `target` says where it went."""

    title: str
    action: str
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class PrintJobFailed(Event):
    """A document could not be viewed, saved or printed."""

    title: str
    action: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MimeFileArrived(Event):
    """A file arrived in the MIME box, complete."""

    file: Path


@dataclass(frozen=True, kw_only=True)
class MimeFileDone(Event):
    """A file of the MIME box was opened or saved."""

    name: str
    action: str


@dataclass(frozen=True, kw_only=True)
class MimeFileFailed(Event):
    """A file of the MIME box was refused, or could not be opened or saved."""

    name: str
    reason: str


# Questions.


@dataclass(frozen=True, kw_only=True)
class Question(Event, Generic[Answer]):
    """An event that wants an answer; the first one holds."""

    timeout_s: float = QUESTION_TIMEOUT_S
    _replies: queue.Queue[Answer] = field(
        default_factory=queue.Queue, repr=False, compare=False
    )

    def answer(self, value: Answer) -> None:
        """Answer it. Never blocks; any thread."""
        self._replies.put(value)

    def wait(self, default: Answer) -> Answer:
        """Wait for the answer, `timeout_s` at most; for whoever asked."""
        try:
            return self._replies.get(timeout=self.timeout_s)
        except queue.Empty:
            return default


@dataclass(frozen=True, kw_only=True)
class HostKeyQuestion(Question[bool]):
    """The server's host key is not known: is it right?"""

    host: str
    key_type: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class BrokerQuestion(Question[bool]):
    """The broker cannot be reached: go on with what the profile itself says?"""

    is_connected: bool


@dataclass(frozen=True, kw_only=True)
class PrintQuestion(Question[object]):
    """What shall be done with this document? The answer is a print action, or None."""

    file: Path
    title: str


@dataclass(frozen=True, kw_only=True)
class SaveAsQuestion(Question["Path | None"]):
    """Where shall this file of the MIME box be saved? None: nowhere."""

    file: Path


Subscriber = Callable[[Event], object]


class Events:
    """Tells every subscriber of every event, in order.

    `emit` runs the subscribers on the caller's thread, one event at a time, and so may
    never be called on a transport's thread. A subscriber that raises is logged.
    """

    def __init__(self) -> None:
        # Held while subscribers run, so that all see the same order; a subscriber may
        # emit.
        self._emitting = threading.RLock()
        self._lock = threading.Lock()
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(event)` from now on, until the result is called."""
        with self._lock:
            self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with self._lock:
                if subscriber in self._subscribers:
                    self._subscribers.remove(subscriber)

        return unsubscribe

    @contextmanager
    def recorded(self) -> Iterator[queue.SimpleQueue[Event]]:
        """Collect the events of a block in a queue."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        unsubscribe = self.subscribe(events.put)
        try:
            yield events
        finally:
            unsubscribe()

    def emit(self, event: Event) -> None:
        """Tell all subscribers. Blocks as long as they take."""
        log.debug("event: kind=%s session=%s", type(event).__name__, event.session)
        with self._emitting:
            with self._lock:
                subscribers = list(self._subscribers)
            for subscriber in subscribers:
                try:
                    subscriber(event)
                except Exception:
                    log.exception("a subscriber failed: kind=%s", type(event).__name__)

    def ask(self, question: Question[Answer], default: Answer) -> Answer:
        """Tell all subscribers, and wait for the answer of one of them.

        Returns `default` where nobody answers in time; at once where nobody listens.
        """
        with self._lock:
            if not self._subscribers:
                return default
        self.emit(question)
        return question.wait(default)


def host_key_prompt(stream: Events) -> Callable[[Any], bool]:
    """Return what `rtunnel.connect(host_key_prompt=...)` takes: it asks by an event.

    A key that nobody vouches for in time is refused.
    """

    def ask(unknown: Any) -> bool:
        question = HostKeyQuestion(
            host=unknown.host,
            key_type=unknown.key_type,
            fingerprint=unknown.fingerprint,
        )
        return stream.ask(question, default=False)

    return ask
