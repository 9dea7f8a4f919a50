"""One session that a client knows: wished for, found on the server, or shown here.

What is known of it is one word (`Status`), changed by what happens: by events of its
terminal while it is shown here, by the server's lists while it is not.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from rtunnel.errors import RTunnelError
from x2go_session import agent, events, profiles, windows
from x2go_session.control import Control
from x2go_session.errors import (
    ControlError,
    GraphicsError,
    NoSuchSession,
    ServiceError,
    SessionStateError,
)
from x2go_session.options import SessionOptions
from x2go_session.registry.connection import Login, ServerConnection
from x2go_session.registry.master import Mastership
from x2go_session.registry.wish import Wish, wish_of
from x2go_session.replies import SessionInfo
from x2go_session.services import Service, ShareKind
from x2go_session.services.print_actions import PrintAction
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.session import SessionType
from x2go_session.states import OVER, State
from x2go_session.terminal import Terminal

log = logging.getLogger("x2go_session.registry.session")

AnyService = TypeVar("AnyService")
_WITHOUT_TERMINAL: Final = frozenset({State.SUSPENDED, State.LOST, *OVER})


class Status(Enum):
    """What is known of a session on the server."""

    UNKNOWN = "unknown"  # not there, as far as we know
    RUNNING = "running"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self is Status.RUNNING

    @property
    def is_suspended(self) -> bool:
        """Whether it waits to be resumed."""
        return self is Status.SUSPENDED

    @property
    def has_terminated(self) -> bool:
        """Whether it is over."""
        return self is Status.TERMINATED


_AFTER: Final[Mapping[type[events.Event], Status]] = {
    events.SessionStarted: Status.RUNNING,
    events.SessionResumed: Status.RUNNING,
    events.SessionFound: Status.RUNNING,
    events.SessionStartedElsewhere: Status.RUNNING,
    events.SessionTakenOver: Status.RUNNING,
    events.SessionSuspended: Status.SUSPENDED,
    events.ConnectionDied: Status.SUSPENDED,
    events.SessionTerminated: Status.TERMINATED,
}


class RegisteredSession:
    """A session of a client, by its uuid. Any thread; what asks the server blocks.

    Raises `X2GoError` and `RTunnelError`, as `Terminal` does. `default_action` says
    what is done with printed documents where the wish does not.
    """

    def __init__(
        self,
        wish: Wish,
        connection: ServerConnection,
        mastership: Mastership,
        *,
        sessions_root: Path,
        default_action: Callable[[], PrintAction] | None = None,
        name: str = "",
    ) -> None:
        self.uuid = str(uuid.uuid4())
        self.wish = wish
        self.connection = connection
        self.events = events.Events()
        self.terminal: Terminal | None = None
        self._mastership = mastership
        self._root = sessions_root
        self._default_action = default_action
        self._name = name
        # Held by whoever starts, resumes, suspends or terminates it.
        self._operation = threading.RLock()
        # Protected by _knowing.
        self._knowing = threading.Lock()
        self._status = Status.UNKNOWN
        self._known_at = 0.0
        self.events.subscribe(self._note)

    def __repr__(self) -> str:
        return f"<RegisteredSession {self.uuid} {self.profile_name} {self.name}>"

    # What it is.

    @property
    def profile_id(self) -> str:
        """The id of its profile."""
        return self.wish.profile.id

    @property
    def profile_name(self) -> str:
        """The name of its profile."""
        return self.wish.profile.name

    @property
    def name(self) -> str:
        """Its name on the server; empty before there is one."""
        return self._name

    @property
    def status(self) -> Status:
        """What is known of it. Never blocks."""
        return self._status

    @property
    def is_running(self) -> bool:
        """Whether it runs, here or elsewhere."""
        return self._status.is_running

    @property
    def is_suspended(self) -> bool:
        """Whether it waits to be resumed."""
        return self._status.is_suspended

    @property
    def is_associated(self) -> bool:
        """Whether it was started or resumed here, and is not over."""
        return self.terminal is not None and self.terminal.state not in OVER

    @property
    def is_shown(self) -> bool:
        """Whether its windows are here, or on their way from or to here."""
        terminal = self.terminal
        return terminal is not None and terminal.state not in _WITHOUT_TERMINAL

    @property
    def is_healthy(self) -> bool:
        """Whether it runs here, over a connection that stands."""
        terminal = self.terminal
        return (
            terminal is not None
            and terminal.state is State.RUNNING
            and self.connection.is_connected
        )

    @property
    def kind(self) -> SessionType:
        """What kind of session it is."""
        if self.terminal is not None and self.is_associated:
            return self.terminal.options.type
        return profiles.plan.session_type(self.wish.profile)

    @property
    def is_published(self) -> bool:
        """Whether applications are started in it one by one."""
        return self.kind is SessionType.PUBLISHED or "stRPUBLISHED" in self.name

    # The connection.

    def connect(self, login: Login | None = None) -> bool:
        """Connect to its server; return whether it was not connected."""
        login = login or Login()
        if login.user:
            self.use_user(login.user)
        is_new = self.connection.connect(self.wish, login, self.events)
        if is_new and self.is_associated and self.terminal is not None:
            self.terminal.use(self.connection.control)
        return is_new

    def check_host(self) -> bool:
        """Whether its server has the right host key; see `ServerConnection`."""
        return self.connection.check_host(self.wish, self.events)

    def use_user(self, user: str) -> None:
        """Log in as somebody else, the next time."""
        self.wish = replace(self.wish, profile=replace(self.wish.profile, user=user))

    # Its life.

    def start(self, parameters: Mapping[str, Any] | None = None) -> None:
        """Start it, with these parameters on top of what was wished for."""
        with self._operation:
            if self.is_associated:
                raise SessionStateError(f"{self.name or self.uuid} was started already")
            wish = wish_of(self.wish, parameters or {})
            self._show(wish, lambda control, options, **more: Terminal(
                control, options, **more
            ), Terminal.start)  # fmt: skip

    def share_desktop(
        self,
        desktop: str,
        *,
        view_only: bool,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Show somebody's desktop ("user@:50") in this session."""
        with self._operation:
            wish, self.wish = (
                self.wish,
                self.wish.shadowing(desktop, view_only=view_only),
            )
            try:
                self.start(parameters)
            except BaseException:
                self.wish = wish
                raise

    def resume(
        self, name: str = "", parameters: Mapping[str, Any] | None = None
    ) -> None:
        """Resume it, or the session of this name. Raises `NoSuchSession`."""
        with self._operation:
            name = name or self.name
            if not name:
                raise NoSuchSession("say which session to resume: it has no name")
            if self.is_shown and name == self.name:
                raise SessionStateError(f"{name} is shown here already")
            control = self.connection.control
            terminal = self.terminal
            if self.is_associated and terminal is not None and name == self.name:
                terminal.use(control)
                terminal.resume()
                return
            if self.is_associated:
                raise SessionStateError(f"this is {self.name} still, and not {name}")
            info = control.find_session(name)
            if info is None:
                raise NoSuchSession(f"the server has no session {name}")
            self._name = name
            wish = wish_of(self.wish, parameters or {})
            self._show(
                wish,
                lambda control, options, **more: Terminal.of_listed(
                    control, info, options, **more
                ),
                Terminal.resume,
            )

    def suspend(self, name: str = "") -> None:
        """Suspend it, or another session of the server by its name."""
        with self._operation:
            if self.terminal is not None and self.is_shown and name in ("", self.name):
                self.terminal.suspend()
                return
            name = self._named(name)
            control = self.connection.control
            control.suspend_session(name)
            info = control.find_session(name)
            if info is not None:
                control.wait_state(
                    name, (agent.SUSPENDED, *agent.OVER), agent.SETTLE_TIMEOUT_S / 5
                )
            if name == self.name:
                self.events.emit(events.SessionSuspended(session=name, by_us=True))

    def terminate(self, name: str = "") -> None:
        """Terminate it, or another session of the server by its name."""
        with self._operation:
            if self.terminal is not None and name in ("", self.name):
                try:
                    self.terminal.use(self.connection.control)
                    self.terminal.terminate()
                except SessionStateError:
                    if self.is_associated:
                        raise
                    raise NoSuchSession(f"{self.name} is over") from None
                return
            name = self._named(name)
            control = self.connection.control
            info = control.find_session(name)
            if info is None:
                raise NoSuchSession(f"the server has no session {name}")
            own = {"stream": self.events} if name == self.name else {}
            Terminal.of_listed(
                control, info, SessionOptions(), sessions_root=self._root, **own
            ).terminate()

    # What the server lists.

    def update(
        self, listed: Mapping[str, SessionInfo], asked_at: float, *, at_first: bool
    ) -> None:
        """Take over what the server listed at a time; tell by events what changed.

        `at_first`: the server has only just been connected to.
        """
        if not self.name or self.is_shown or asked_at < self._known_at:
            return
        event = _change(self._status, listed.get(self.name), self.name, at_first)
        if event is not None:
            self.events.emit(event)

    @property
    def info(self) -> SessionInfo | None:
        """The server's line about it; None if there is none."""
        found = self.connection.lists.sessions(self.connection.control)
        return next((each for each in found if each.name == self.name), None)

    def status_of(self, name: str) -> Status:
        """Return the status of another session of its server, by name. Blocks."""
        info = self.connection.control.find_session(name)
        if info is None:
            return Status.TERMINATED
        return Status.SUSPENDED if info.is_suspended else Status.RUNNING

    @property
    def summary(self) -> dict[str, Any]:
        """What is known of it, under the names that python-x2go has. Never blocks."""
        connection = self.connection
        return {
            "uuid": self.uuid,
            "profile_id": self.profile_id,
            "profile_name": self.profile_name,
            "session_name": self.name,
            "control_session": connection.control if connection.is_connected else None,
            "control_params": dict(self.wish.connect),
            "terminal_session": self.terminal,
            "terminal_params": dict(self.wish.options),
            "virgin": self.terminal is None and self._status is Status.UNKNOWN,
            "connected": connection.is_connected,
            "running": self.is_running,
            "suspended": self.is_suspended,
            "terminated": self._status.has_terminated,
        }

    # Its services.

    def service(self, kind: type[AnyService]) -> AnyService | None:
        """Return its service of a kind, as long as that runs."""
        if self.terminal is None:
            return None
        running: Iterable[object] = self.terminal.services.running
        return next((each for each in running if isinstance(each, kind)), None)

    @property
    def can_share(self) -> bool:
        """Whether folders of this side can be shared with it."""
        return self.wish.profile.useexports and self.service(Sharing) is not None

    @property
    def shared_folders(self) -> list[Path]:
        """The folders of this side that are mounted in it."""
        sharing = self.service(Sharing)
        if sharing is None:
            return []
        return [
            each.folder
            for each in sharing.folders
            if each.mount_point and each.kind is ShareKind.FOLDER
        ]

    def folders_on_server(self) -> list[Path]:
        """Return those of them that the server lists as mounted. Blocks."""
        sharing = self.service(Sharing)
        if sharing is None:
            return []
        mounts = self.connection.control.mounts(self.name)
        listed = {each.mount_point for each in mounts}
        return [
            each.folder
            for each in sharing.folders
            if each.kind is ShareKind.FOLDER and each.mount_point in listed
        ]

    def share(self, folder: Path) -> None:
        """Share a folder with it. Raises `ServiceError`."""
        self._sharing().share(folder)

    def unshare(self, folder: Path) -> None:
        """Unshare a folder. Raises `ServiceError`."""
        self._sharing().unshare(folder)

    def use_print_action(self, action: PrintAction) -> None:
        """Do this with what it prints, from now on."""
        self.wish = replace(self.wish, print_action=action)
        printing = self.service(Printing)
        if printing is not None:
            printing.action = action

    # Its window.

    def set_title(self, title: str) -> None:
        """Give its window a title; its name is in front of it, so that it is found.

        Raises `GraphicsError` where there is no window, or it cannot be told: those of
        rootless sessions have the titles of their programs.
        """
        if self.name not in title:
            title = f"{windows.PREFIX}{self.name} {title}".rstrip()
        self._window().set_title(title)

    def raise_window(self) -> None:
        """Bring its window in front of all others. Raises as `set_title`."""
        self._window().activate()

    # Small parts.

    def _window(self) -> windows.SessionWindow:
        found = windows.find_window(self.name) if self.name else None
        if found is None:
            raise GraphicsError(
                f"session {self.name or self.uuid} has no window of its own here"
            )
        return found

    def _show(
        self,
        wish: Wish,
        make: Callable[..., Terminal],
        begin: Callable[[Terminal], object],
    ) -> None:
        """Make the terminal and have it begin; fold in who shares folders."""
        control = self.connection.control
        self._check_files(control)
        before = self._mastership.master
        kind = profiles.plan.session_type(wish.profile)
        takes_over = before is None or self._mastership.yields(before.kind, kind)
        self.terminal = make(
            control,
            wish.session_options(self.wish.password or ""),
            services=self._make_services(wish, with_folders=before is None),
            stream=self.events,
            sessions_root=self._root,
        )
        begin(self.terminal)
        if takes_over:
            self._mastership.take(self)
        if wish.profile.setsessiontitle:
            try:
                self.set_title(wish.profile.sessiontitle)
            except GraphicsError as error:
                log.info("no title: name=%s error=%s", self.name, error)

    def _make_services(self, wish: Wish, *, with_folders: bool) -> list[Service]:
        action = wish.print_action
        if action is None and self._default_action is not None:
            action = self._default_action()
        profile = wish.profile
        if not with_folders:
            profile = replace(profile, export={})
        return profiles.services(profile, action, self._not_there)

    def _not_there(self, error: ServiceError) -> None:
        self.events.emit(
            events.FolderNotShared(session=self.name, folder=Path(), reason=str(error))
        )

    def _check_files(self, control: Control) -> None:
        try:
            control.check_files()
        except (ControlError, RTunnelError) as error:
            if control.is_alive:
                self.events.emit(
                    events.FilesRefused(session=self.name, reason=str(error))
                )
            raise

    def _named(self, name: str) -> str:
        if name or self.name:
            return name or self.name
        raise NoSuchSession("the session was not started, and none was named")

    def _sharing(self) -> Sharing:
        sharing = self.service(Sharing)
        if sharing is None or not self.can_share:
            raise ServiceError(
                "no folder sharing: the session does not run here, or does not allow it"
            )
        return sharing

    def _note(self, event: events.Event) -> None:
        """Remember what an event says about the session."""
        status = _AFTER.get(type(event))
        if status is None:
            return
        with self._knowing:
            if event.session:
                self._name = event.session
            self._status = status
            self._known_at = time.monotonic()


def _change(
    before: Status, info: SessionInfo | None, name: str, at_first: bool
) -> events.Event | None:
    """Return what happened to a session that is not shown here. Pure."""
    if info is None:
        if before in (Status.RUNNING, Status.SUSPENDED):
            return events.SessionTerminated(session=name, by_us=False)
        return None
    if info.is_suspended:
        if before is not Status.SUSPENDED:
            return events.SessionSuspended(session=name, by_us=False)
        return None
    if not info.is_running or before is Status.RUNNING:
        return None
    if at_first:
        return events.SessionFound(session=name)
    if before is Status.SUSPENDED:
        return events.SessionTakenOver(session=name)
    return events.SessionStartedElsewhere(session=name)
