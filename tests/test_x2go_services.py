"""Sound, printing and MIME box of a session on a real X2Go server, from end to end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cups import Cups, Printed
from tests.support.pulse import Pulse, record, silence, tone, write_wav
from tests.support.tunnels import background
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_client import PDF, Client
from x2go_session.events import (
    MimeFileDone,
    MimeFileFailed,
    PrintJobDone,
    ServiceFailed,
    ServiceStarted,
)
from x2go_session.services.print_actions import Print

# A session takes seconds to start, and a busy machine many more.
pytestmark = pytest.mark.timeout(300)

TONE_HZ = 440.0


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with Pulse(tmp_path_factory.mktemp("pulse")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def client(
    x2go_server: X2goServer,
    client_display: Display,
    pulse: Pulse,
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("client")
    client = Client(x2go_server, client_display, pulse, folder, [shared])
    try:
        client.terminal.start()
        yield client
        client.terminal.terminate()
        assert x2go_server.mounts() == []
        assert list((folder / "x2go").glob("S-*")) == []
    finally:
        client.close()


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


def test_a_tone_of_the_session_is_heard_here_sample_by_sample_beside_a_copy(
    client: Client, pulse: Pulse, shared: Path
) -> None:
    (place,) = [s.mount_point for s in client.sharing.folders if s.folder == shared]
    content = os.urandom(32 * 1024 * 1024)
    (shared / "large").write_bytes(content)
    frames = tone(TONE_HZ, 1.0)
    file = client.server.home / "tone.wav"
    write_wav(file, silence(0.5) + frames + silence(0.5))
    with record(pulse) as recording:
        with background(client.run, "cp", f"{place}/large", f"{place}/copy"):
            client.run("paplay", str(file))
        wait_until(lambda: recording.has(frames), PATIENCE_S)
    assert (shared / "copy").read_bytes() == content


def test_what_x2goprint_delivers_is_saved_here(client: Client) -> None:
    client.print("Grüße / Report")
    saved = client.saved / "Grüße_Report.pdf"
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
