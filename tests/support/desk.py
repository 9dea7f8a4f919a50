"""A session on the real X2Go server that shares folders, and what it told."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.x2go import Display, X2goServer
from x2go_session.control import Control
from x2go_session.events import Event, Events
from x2go_session.options import SessionOptions
from x2go_session.services.sharing import Sharing
from x2go_session.states import State
from x2go_session.terminal import Terminal


class Desk:
    """A session that shares folders, and what it told."""

    def __init__(self, server: X2goServer, display: Display, folder: Path) -> None:
        self.server = server
        self.tunnel = server.connect()
        self.sharing = Sharing()
        self.told: list[Event] = []
        stream = Events()
        stream.subscribe(self.told.append)
        self.terminal = Terminal(
            Control(self.tunnel),
            SessionOptions(command="xclock -update 1"),
            stream=stream,
            sessions_root=folder,
            services=[self.sharing],
            environment={**os.environ, "DISPLAY": display.name},
        )
        self.session = self.terminal.start()
        assert self.sharing.port, self.told

    def heard(self, kind: type[Event]) -> list[Event]:
        """Return the events of one kind, in order."""
        return [event for event in self.told if type(event) is kind]

    def place(self, folder: Path) -> str:
        """Return where a shared folder is mounted."""
        (found,) = [s for s in self.sharing.folders if s.folder == folder]
        assert found.mount_point in self.server.mounts()
        return found.mount_point

    def mounts(self) -> list[str]:
        """Return where folders are mounted, without the spools."""
        return [place for place in self.server.mounts() if "/media/" in place]

    def run(self, script: str, *arguments: str) -> str:
        """Run a shell script as the user of the session, in the session's home."""
        return self.server.as_user("sh", "-euc", script, "sh", *arguments)

    def close(self) -> None:
        """End the session."""
        if self.terminal.state is not State.TERMINATED:
            self.terminal.terminate()
        self.tunnel.close()
        self.server.end_sessions()


def make(folder: Path, name: str = "two words") -> Path:
    """Make a folder with a file in it."""
    made = folder / name
    made.mkdir()
    (made / "file").write_text("content")
    return made
