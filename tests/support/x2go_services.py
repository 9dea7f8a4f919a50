"""What services of a session need where there is no X2Go server: shares, programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rtunnel import Tunnel
from tests.support.ports import free_port
from x2go_session.control import Control
from x2go_session.errors import ServiceError
from x2go_session.events import Event, Events
from x2go_session.services import FileEvent, FileEventKind, ShareKind
from x2go_session.session import Ports, Session, SessionType

NAME = "user-50-1795190498_stRTERMINAL_dp24"

PROGRAM = """\
#!{python} -S
import json, os, sys
content = open(sys.argv[-1], "rb").read().decode("latin-1")
note = {folder!r} + "/" + str(os.getpid())
with open(note + ".part", "w") as file:
    json.dump([sys.argv[1:], content], file)
os.rename(note + ".part", note)
"""


class Told:
    """The events of a session, as they come."""

    def __init__(self, events: Events) -> None:
        self.events: list[Event] = []
        events.subscribe(self.events.append)

    def of(self, *kinds: type[Event]) -> list[Event]:
        """Return those of some kinds, in order."""
        return [event for event in self.events if isinstance(event, kinds)]


def make_session(folder: Path, tunnel: Tunnel | None = None) -> Session:
    """Return a session, on a tunnel if it needs one; both its folders in `folder`."""
    local, remote = folder / "local", folder / "remote"
    for made in (local, remote):
        made.mkdir(exist_ok=True)
    return Session(
        name=NAME,
        type=SessionType.ROOTLESS,
        command="TERMINAL",
        display=50,
        cookie="0" * 32,
        agent_pid=1,
        ports=Ports(graphics=free_port(), sound=free_port(), sharing=free_port()),
        control=Control(tunnel) if tunnel is not None else None,  # type: ignore[arg-type]
        events=Events(),
        local_folder=local,
        remote_folder=str(remote),
    )


class Shares:
    """Folder sharing that mounts nothing; the test says what the server did."""

    def __init__(self, refuses: str = "") -> None:
        self.shared: dict[Path, ShareKind] = {}
        self._refuses = refuses
        self._told: list[Callable[[FileEvent], object]] = []

    @property
    def port(self) -> int:
        return 1

    def share(
        self,
        folder: Path,
        *,
        kind: ShareKind = ShareKind.FOLDER,
        read_only: bool = False,
        on_file: Callable[[FileEvent], object] | None = None,
    ) -> None:
        if self._refuses:
            raise ServiceError(self._refuses)
        self.shared[folder] = kind
        if on_file is not None:
            self._told.append(on_file)

    def unshare(self, folder: Path) -> None:
        if folder not in self.shared:
            raise ServiceError(f"{folder} is not shared")
        del self.shared[folder]

    def say(self, kind: FileEventKind, path: Path) -> None:
        """Tell whoever wanted to know."""
        for on_file in self._told:
            on_file(FileEvent(kind, path))


@dataclass(frozen=True)
class Call:
    """How a program was called, and what its last argument, a file, held then."""

    arguments: list[str]
    content: bytes


class Program:
    """A program that notes how it is called; `str()` is its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        self._folder = path.parent / f"{path.name} calls"
        self._folder.mkdir()
        path.write_text(
            PROGRAM.format(python=sys.executable, folder=os.fspath(self._folder))
        )
        path.chmod(0o755)

    def __str__(self) -> str:
        return str(self.path)

    def calls(self) -> list[Call]:
        """Return its calls so far."""
        notes = [
            json.loads(note.read_text())
            for note in self._folder.iterdir()
            if note.name.isdigit()
        ]
        return [Call(arguments, text.encode("latin-1")) for arguments, text in notes]
