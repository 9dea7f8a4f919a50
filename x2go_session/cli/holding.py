"""Stay with a session that is shown here: what `start` and `resume` have in common."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from x2go_session import events
from x2go_session.cli import connecting
from x2go_session.cli.exit_status import ExitStatus
from x2go_session.cli.output import Output
from x2go_session.control import Control
from x2go_session.errors import NoSuchSession, X2GoError
from x2go_session.events import Events
from x2go_session.keeper import ENDS, Keeper
from x2go_session.local import LocalDoor, Request
from x2go_session.replies import SessionInfo
from x2go_session.services import Service, ShareKind
from x2go_session.services.mime_actions import mime_action
from x2go_session.services.mimebox import MimeBox
from x2go_session.services.print_actions import print_action
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.services.sound import Sound, SoundSystem
from x2go_session.states import State
from x2go_session.terminal import Terminal

# The word of --print-to belongs to another argument of each action.
_PRINT_ARGUMENT: Final = {
    "pdfview": "pdfview_cmd",
    "pdfsave": "save_to_folder",
    "print": "printer",
    "printcmd": "print_cmd",
}


# One of these tells of each end of holding.
_END_EVENTS: Final = (
    events.SessionSuspended,
    events.SessionTakenOver,
    events.SessionTerminated,
    events.SessionFailed,
    events.ConnectionDied,
)
# For subscribers that come before: they may ask the user.
_TELL_TIMEOUT_S: Final = 10.0
# How often signals are looked for.
_LOOK_S: Final = 0.5


class ToldToEnd(BaseException):
    """SIGINT or SIGTERM came. Not an Exception: nothing on the way may catch it."""


class Holder:
    """One session on this display, until it is over, suspended, or we are told to end.

    Main thread only.
    """

    def __init__(self, values: dict[str, Any], output: Output) -> None:
        self._values = values
        self._output = output
        self._root: Path = Path(os.path.expanduser(values["sessions_root"]))
        self._sharing = Sharing()
        self._printing: Printing | None = None
        self._events = Events()
        self._events.subscribe(output.event)
        self._events.subscribe(self._answer)
        # The state changes first, and then somebody else tells of it: who only looks
        # at the state may leave before that was printed.
        self._end_told = threading.Event()
        self._events.subscribe(self._note_end)

    def hold(self, options: Any, listed: str | None = None) -> ExitStatus:
        """Start a session, or resume the one that is listed so, and stay with it."""
        with _told_to_end(), connecting.connect(self._values) as tunnel:
            control = Control(tunnel)
            more: dict[str, Any] = {
                "services": self._services(),
                "stream": self._events,
                "sessions_root": self._root,
            }
            if listed is None:
                terminal = Terminal(control, options, **more)
            else:
                info = find(control, listed)
                terminal = Terminal.of_listed(control, info, options, **more)
            keeper = Keeper(terminal, lambda: connecting.connect(self._values))
            try:
                if listed is None:
                    terminal.start()
                else:
                    terminal.resume()
                self._stay(terminal, keeper)
            except ToldToEnd:
                keeper.stop()
                self._leave(terminal)
            finally:
                keeper.close()
        lost = terminal.state is State.LOST
        return ExitStatus.CONNECTION_LOST if lost else ExitStatus.ENDED

    def _stay(self, terminal: Terminal, keeper: Keeper) -> None:
        door = LocalDoor(terminal.session.local_folder, self._handlers(terminal))
        try:
            if self._values["reconnect"]:
                keeper.keep()
            else:
                # A signal that comes just before a wait begins ends no wait.
                while not terminal.wait_for(State.LOST, *ENDS, timeout_s=_LOOK_S):
                    pass
            self._end_told.wait(_TELL_TIMEOUT_S)
        finally:
            door.close()

    def _leave(self, terminal: Terminal) -> None:
        """Do what --at-exit says, if the session runs: it may have ended as well."""
        if terminal.state is not State.RUNNING:
            return
        if self._values["at_exit"] == "terminate":
            terminal.terminate()
        else:
            terminal.suspend()

    def _services(self) -> list[Service]:
        values = self._values
        for folder in values["shares"]:
            self._share(folder, read_only=False)
        for folder in values["read_only_shares"]:
            self._share(folder, read_only=True)
        services: list[Service] = [self._sharing]
        if values["sound"] != "none":
            services.append(Sound(SoundSystem(values["sound"])))
        if values["printing"] is not None:
            kind, argument = values["printing"], values["print_to"]
            given = {_PRINT_ARGUMENT[kind]: argument} if argument else {}
            self._printing = Printing(self._sharing, print_action(kind, **given))
            services.append(self._printing)
        if values["mimebox"] is not None:
            given = {}
            if values["mimebox"] == "openwith" and values["mimebox_to"]:
                given = {"command": values["mimebox_to"]}
            action = mime_action(values["mimebox"], **given)
            extensions = values["mimebox_extensions"]
            services.append(MimeBox(self._sharing, action, extensions))
        return services

    def _share(self, folder: Path, *, read_only: bool) -> None:
        try:
            self._sharing.share(folder, read_only=read_only)
        except X2GoError as error:
            raise click.UsageError(str(error)) from error

    def _handlers(self, terminal: Terminal) -> dict[str, Any]:
        def share(request: Request) -> object:
            folder = Path(str(request["folder"]))
            self._sharing.share(folder, read_only=bool(request.get("read_only")))
            return self._shared(folder)

        def unshare(request: Request) -> object:
            named = request.get("folder")
            # Without a name: all that was shared by one, and not the spools.
            folders = [
                each.folder
                for each in self._sharing.folders
                if named is None
                and each.kind in (ShareKind.FOLDER, ShareKind.REMOVABLE)
            ]
            for folder in [Path(str(named))] if named else folders:
                self._sharing.unshare(folder)
            return None

        def print_jobs(_: Request) -> object:
            jobs = self._printing.jobs if self._printing else []
            return [
                {
                    "number": job.number,
                    "title": job.subject.title,
                    "action": job.subject.action,
                    "state": job.state.value,
                    "arrived": job.arrived.isoformat(),
                    "detail": job.detail,
                }
                for job in jobs
            ]

        return {
            "ping": lambda _: terminal.state.value,
            "share": share,
            "unshare": unshare,
            "print-jobs": print_jobs,
            "suspend": lambda _: terminal.suspend(),
            "terminate": lambda _: terminal.terminate(),
        }

    def _shared(self, folder: Path) -> str:
        folder = folder.absolute()
        found = [each for each in self._sharing.folders if each.folder == folder]
        return found[0].mount_point if found else ""

    def _note_end(self, event: events.Event) -> None:
        if isinstance(event, _END_EVENTS):
            self._end_told.set()
        elif isinstance(event, (events.SessionStarted, events.ConnectionRestored)):
            self._end_told.clear()

    def _answer(self, event: events.Event) -> None:
        """Answer what the MIME box asks: where --mimebox-to says."""
        if isinstance(event, events.SaveAsQuestion):
            folder = self._values["mimebox_to"]
            event.answer(Path(os.path.expanduser(folder)) if folder else Path.cwd())


def find(control: Control, name: str | None) -> SessionInfo:
    """Return the session of this name, or the only one if none is named."""
    listed = control.sessions()
    if name is None and len(listed) == 1:
        return listed[0]
    for info in listed:
        if info.name == name:
            return info
    names = ", ".join(info.name for info in listed) or "none"
    if name is None:
        raise NoSuchSession(f"name the session; the server lists {names}")
    raise NoSuchSession(f"the server has no session {name}; it lists {names}")


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Raise `ToldToEnd` on the main thread at the first SIGINT or SIGTERM."""
    told = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not told.is_set():
            told.set()
            raise ToldToEnd

    before = {
        each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
