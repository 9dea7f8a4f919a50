"""Sound, printing and MIME box of a session on a real X2Go server, from end to end."""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cups import Cups, Printed
from tests.support.pulse import Pulse, record, silence, tone, write_wav
from tests.support.x2go import PATIENCE_S, Display, X2goServer, run, wait_until
from tests.support.x2go_services import Program, Told
from x2go_session.control import Control
from x2go_session.events import (
    MimeFileDone,
    MimeFileFailed,
    PrintJobDone,
    ServiceFailed,
    ServiceStarted,
)
from x2go_session.options import SessionOptions
from x2go_session.services.mime_actions import OpenWith
from x2go_session.services.mimebox import MimeBox
from x2go_session.services.print_actions import PdfSave, Print
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.services.sound import Sound
from x2go_session.states import State
from x2go_session.terminal import Terminal

# A session takes seconds to start, and a busy machine many more.
pytestmark = pytest.mark.timeout(300)

PDF = b"%PDF-1.4\n" + b"%of a kind\n" * 50_000
TONE_HZ = 440.0


class Client:
    """A session with sound, printing and MIME box, and what is seen on either side."""

    def __init__(
        self, server: X2goServer, display: Display, pulse: Pulse, folder: Path
    ) -> None:
        self.server = server
        self.pulse = pulse
        self.folder = folder
        self.viewer = Program(folder / "viewer")
        self.tunnel = server.connect()
        self.sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
        sharing = Sharing()
        self.printing = Printing(sharing, PdfSave(str(folder / "saved")))
        self.mimebox = MimeBox(sharing, OpenWith(str(self.viewer), wait_s=0.0))
        # Its environment is what each program of the session gets.
        self._environment = server.home / "environment"
        self._script = server.home / "application"
        self._script.write_text(
            f"#!/bin/sh\nenv -0 >{self._environment}\nexec xclock\n"
        )
        self._script.chmod(0o755)
        self.terminal = Terminal(
            Control(self.tunnel),
            SessionOptions(command=str(self._script), link="lan", sound="pulse"),
            services=[self.sound, sharing, self.printing, self.mimebox],
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
        spool = Path(pwd.getpwnam("x2goprint").pw_dir)
        name = uuid.uuid4().hex
        (spool / f"{name}.pdf").write_bytes(pdf)
        (spool / f"{name}.title").write_text(title)
        run(
            *("x2goprint", self.server.user, self.terminal.session.name),
            *(f"{name}.pdf", f"{name}.title"),
        )

    def hears_the_session(self) -> bool:
        """Return whether PulseAudio here answers a program of the session."""
        return "Server Name: pulseaudio" in self.run("pactl", "info")


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with Pulse(tmp_path_factory.mktemp("pulse")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(
    x2go_server: X2goServer,
    client_display: Display,
    pulse: Pulse,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("client")
    client = Client(x2go_server, client_display, pulse, folder)
    try:
        client.terminal.start()
        yield client
        client.terminal.terminate()
        assert x2go_server.mounts() == []
        assert list((folder / "x2go").glob("S-*")) == []
    finally:
        client.tunnel.close()
        x2go_server.end_sessions()


def test_the_services_run_and_tell_the_session_where_they_are(client: Client) -> None:
    started = {
        event.service
        for event in client.told.of(ServiceStarted)
        if isinstance(event, ServiceStarted)
    }
    assert started == {"sound", "sharing", "printing", "mimebox"}
    assert client.told.of(ServiceFailed) == []
    remote = client.terminal.session.remote_folder
    script = 'echo "$PULSE_CLIENTCONFIG" "$X2GO_SPOOLDIR" "$X2GO_MIMEBOX"'
    assert client.run("sh", "-c", script).split() == [
        f"{remote}/.pulse-client.conf",
        f"{remote}/spool",
        f"{remote}/mimebox",
    ]


def test_a_tone_of_the_session_is_heard_here_sample_by_sample(
    client: Client, pulse: Pulse
) -> None:
    frames = tone(TONE_HZ, 2.0)
    file = client.server.home / "tone.wav"
    write_wav(file, silence(1.0) + frames + silence(1.0))
    with record(pulse) as recording:
        client.run("paplay", str(file))
        wait_until(lambda: recording.has(frames), PATIENCE_S)


def test_what_x2goprint_delivers_is_saved_here(client: Client) -> None:
    client.print("Grüße / Report")
    saved = client.folder / "saved" / "Grüße_Report.pdf"
    wait_until(lambda: client.told.of(PrintJobDone), PATIENCE_S)
    assert saved.read_bytes() == PDF
    assert list((client.terminal.session.local_folder / "spool").iterdir()) == []


def test_what_x2goprint_delivers_is_printed_here(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cups(tmp_path / "cups") as cups:
        monkeypatch.setenv("CUPS_SERVER", cups.environment["CUPS_SERVER"])
        client.printing.action = Print(cups.queue)
        client.print("On paper")
        wait_until(lambda: cups.printed() == [Printed("On paper", PDF)], PATIENCE_S)


def test_a_file_that_is_dropped_is_opened_here_when_it_is_complete(
    client: Client,
) -> None:
    slowly = "for part in 1 2 3; do echo $part; sleep 0.4; done"
    client.run("sh", "-c", f'({slowly}) >"$X2GO_MIMEBOX/my letter.txt"')
    wait_until(lambda: client.told.of(MimeFileDone), PATIENCE_S)
    (call,) = client.viewer.calls()
    assert Path(call.arguments[0]).name == "my letter.txt"
    assert call.content == b"1\n2\n3\n"
    client.run("sh", "-c", 'echo exit >"$X2GO_MIMEBOX/evil.sh"')
    wait_until(lambda: client.told.of(MimeFileFailed), PATIENCE_S)
    assert len(client.viewer.calls()) == 1
    assert list((client.terminal.session.local_folder / "mimebox").iterdir()) == []


def test_all_of_it_works_again_after_a_resume(client: Client) -> None:
    before = len(client.viewer.calls())
    client.printing.action = PdfSave(str(client.folder / "saved"))
    assert client.hears_the_session()
    client.terminal.suspend()
    assert client.server.mounts() == []
    client.terminal.resume()
    assert client.told.of(ServiceFailed) == []
    assert client.hears_the_session()
    client.print("Again")
    wait_until((client.folder / "saved" / "Again.pdf").exists, PATIENCE_S)
    client.run("sh", "-c", 'echo again >"$X2GO_MIMEBOX/again.txt"')
    wait_until(lambda: len(client.viewer.calls()) == before + 1, PATIENCE_S)


def test_all_of_it_works_again_on_another_connection(client: Client) -> None:
    before = len(client.viewer.calls())
    client.tunnel.transport.close()
    assert client.terminal.wait_for(State.LOST, timeout_s=PATIENCE_S)
    assert list(client.terminal.session.local_folder.glob("spool/*")) == []
    client.tunnel = client.server.connect()
    client.terminal.use(Control(client.tunnel))
    client.terminal.resume()
    assert client.told.of(ServiceFailed) == []
    assert client.hears_the_session()
    client.print("On another")
    wait_until((client.folder / "saved" / "On_another.pdf").exists, PATIENCE_S)
    client.run("sh", "-c", 'echo other >"$X2GO_MIMEBOX/other.txt"')
    wait_until(lambda: len(client.viewer.calls()) == before + 1, PATIENCE_S)
