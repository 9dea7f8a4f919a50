"""A session on the real X2Go server with all services, and what either side sees."""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.support.pulse import Pulse
from tests.support.x2go import PATIENCE_S, Display, X2goServer, run, wait_until
from tests.support.x2go_services import Program, Told
from x2go_session.control import Control
from x2go_session.options import SessionOptions
from x2go_session.services.mime_actions import OpenWith
from x2go_session.services.mimebox import MimeBox
from x2go_session.services.print_actions import PdfSave
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.services.sound import Sound
from x2go_session.states import State
from x2go_session.terminal import Terminal

PDF = b"%PDF-1.4\n" + b"%of a kind\n" * 50_000


def print_in(server: X2goServer, session: str, title: str, pdf: bytes = PDF) -> None:
    """Do what the printer of an X2Go server does with what a session printed."""
    spool = Path(pwd.getpwnam("x2goprint").pw_dir)
    name = uuid.uuid4().hex
    (spool / f"{name}.pdf").write_bytes(pdf)
    (spool / f"{name}.title").write_text(title)
    run("x2goprint", server.user, session, f"{name}.pdf", f"{name}.title")


class Client:
    """A session with sound, printing and MIME box, and what is seen on either side."""

    def __init__(
        self,
        server: X2goServer,
        display: Display,
        pulse: Pulse,
        folder: Path,
        shares: Sequence[Path] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.server = server
        self.pulse = pulse
        self.folder = folder
        self.saved = folder / "saved"
        self.viewer = Program(folder / "viewer")
        self.tunnel = server.connect()
        self.sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
        self.sharing = Sharing()
        for share in shares:
            self.sharing.share(share)
        self.printing = Printing(self.sharing, PdfSave(str(self.saved)))
        self.mimebox = MimeBox(self.sharing, OpenWith(str(self.viewer), wait_s=0.0))
        # Its environment is what each program of the session gets.
        self._environment = server.home / "environment"
        self._environment.unlink(missing_ok=True)  # of a session before this one
        self._script = server.home / "application"
        self._script.write_text(
            f"#!/bin/sh\nenv -0 >{self._script}.part\n"
            f"mv {self._script}.part {self._environment}\nexec xclock\n"
        )
        self._script.chmod(0o755)
        self.terminal = Terminal(
            Control(self.tunnel),
            SessionOptions(command=str(self._script), link="lan", sound="pulse"),
            services=[self.sound, self.sharing, self.printing, self.mimebox],
            sessions_root=folder / "x2go",
            environment={**os.environ, "DISPLAY": display.name},
        )
        self.told = Told(self.terminal.events)

    def run(self, *command: str) -> str:
        """Run a program as those of the session are run."""
        wait_until(self._environment.exists, PATIENCE_S)
        given = self._environment.read_text().split("\0")
        return self.server.as_user("env", *filter(None, given), *command)

    def print(self, title: str, pdf: bytes = PDF) -> None:
        """Do what the printer of the X2Go server does with what was printed."""
        print_document(self.server, self.terminal.session.name, title, pdf)

    def close(self) -> None:
        """End the session, in whatever way that is possible."""
        if self.terminal.state is State.RUNNING:
            self.terminal.terminate()
        self.tunnel.close()
        self.server.end_sessions()

    def hears_the_session(self) -> bool:
        """Return whether PulseAudio here answers a program of the session."""
        return "Server Name: pulseaudio" in self.run("pactl", "info")


def print_document(
    server: X2goServer, session: str, title: str, pdf: bytes = PDF
) -> None:
    """Do what the printer of the X2Go server does with what a session printed."""
    spool = Path(pwd.getpwnam("x2goprint").pw_dir)
    name = uuid.uuid4().hex
    (spool / f"{name}.pdf").write_bytes(pdf)
    (spool / f"{name}.title").write_text(title)
    run("x2goprint", server.user, session, f"{name}.pdf", f"{name}.title")
