"""Terminal sessions on a real X2Go server, their windows on a display of this side."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rtunnel import Tunnel
from rtunnel.errors import PortInUse
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from x2go_session import events
from x2go_session.control import Control
from x2go_session.errors import (
    GraphicsError,
    NoSuchCommand,
    NoSuchSession,
    SessionStateError,
)
from x2go_session.events import Event, Events
from x2go_session.graphics import screen_size
from x2go_session.options import SessionOptions
from x2go_session.session import SessionType
from x2go_session.states import State
from x2go_session.terminal import Terminal

# A session takes seconds to start, and a busy machine many more.
pytestmark = pytest.mark.timeout(300)

CLOCK: dict[str, Any] = {"command": "xclock -update 1", "link": "lan"}
Open = Callable[..., Terminal]


class Client:
    """Terminals of one user of this side, and what they tell."""

    def __init__(self, display: Display, root: Path) -> None:
        self.display = display
        self.root = root
        self.environment = {**os.environ, "DISPLAY": display.name}
        self.told: list[Event] = []

    def terminal(self, control: Control, **options: Any) -> Terminal:
        return Terminal(control, SessionOptions(**options), **self.more())

    def more(self) -> dict[str, Any]:
        stream = Events()
        stream.subscribe(self.told.append)
        return {
            "stream": stream,
            "sessions_root": self.root,
            "environment": self.environment,
        }

    def heard(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.told if type(event) is kind]

    def sees(self, window: str) -> bool:
        """Whether a window of this name is shown, and not all of it is one colour."""
        return window in self.display.windows() and self.display.colours() > 1


@pytest.fixture
def client(client_display: Display, tmp_path: Path) -> Client:
    return Client(client_display, tmp_path / "x2go")


@pytest.fixture(autouse=True)
def _nothing_is_left(x2go_server: X2goServer) -> Iterator[None]:
    x2go_server.end_sessions()
    yield
    x2go_server.end_sessions()


def wait(condition: Callable[[], object]) -> None:
    wait_until(condition, PATIENCE_S)


def test_an_application_is_seen_suspended_resumed_and_ended(
    control: Control, x2go_tunnel: Tunnel, client: Client, x2go_server: X2goServer
) -> None:
    terminal = client.terminal(control, **CLOCK)
    session = terminal.start()
    wait(lambda: client.sees('"xclock"'))
    proxy = Path(f"/proc/{proxy_of(session.local_folder)}/cmdline")
    assert session.cookie not in proxy.read_text()
    assert session.local_folder.stat().st_mode & 0o077 == 0
    assert [info.name for info in control.sessions()] == [session.name]
    (started,) = client.heard(events.SessionStarted)
    assert started.session == session.name

    terminal.suspend()
    assert (terminal.state, control.sessions()[0].is_suspended) == (
        State.SUSPENDED,
        True,
    )
    assert "xclock" not in client.display.windows()

    # The server chooses another port where one is taken.
    before = session.ports
    with contextlib.ExitStack() as held:
        taken = set()
        for port in (before.sound, before.sharing):
            # One that an old connection of the machine has is not seen by the server.
            with contextlib.suppress(PortInUse):
                where = ("127.0.0.1", port)
                held.enter_context(x2go_tunnel.listen(where, to="127.0.0.1:9"))
                taken.add(port)
        terminal.resume()
    assert not taken & {session.ports.sound, session.ports.sharing}
    wait(lambda: client.sees('"xclock"'))
    (resumed,) = client.heard(events.SessionResumed)
    assert resumed.ports["sound"] == session.ports.sound  # type: ignore[attr-defined]

    terminal.terminate()
    assert (terminal.state, control.sessions()) == (State.TERMINATED, [])
    assert client.heard(events.SessionTerminated)[0].by_us  # type: ignore[attr-defined]
    # nxproxy's cache is for the next session; of this one nothing is left.
    assert [path.name[:6] for path in client.root.iterdir()] == ["cache-"]
    left = [line for line in x2go_server.processes().values() if "sshd" not in line]
    assert left == []
    assert list((x2go_server.home / ".x2go").glob("C-*")) == []
    with pytest.raises(SessionStateError, match="terminated cannot be resuming"):
        terminal.resume()


def test_a_desktop_has_what_was_asked_for(control: Control, client: Client) -> None:
    terminal = client.terminal(
        control,
        type=SessionType.DESKTOP,
        command="xclock",
        geometry="640x400",
        dpi=120,
        link="wan",
        pack="16m-png-7",
        clipboard="client",
        keyboard_type="pc105/de",
        keyboard_layout="de",
        keyboard_variant="nodeadkeys",
    )
    session = terminal.start()
    wait(lambda: client.sees(f'"X2GO-{session.name}"'))
    inside = f"DISPLAY=:{session.display}"
    assert "120x120 dots per inch" in control.check(f"{inside} xdpyinfo").stdout
    query = f"{inside} setxkbmap -query"
    wait(lambda: "nodeadkeys" in control.run(query).stdout)
    assert re.search(r"layout: +de", control.run(query).stdout)

    said = control.check(f"cat {session.remote_folder}/options").stdout
    wanted = ("geometry=640x400", "link=wan", "pack=16m-png-7", "clipboard=client")
    assert [option for option in wanted if f",{option}," not in said] == []
    terminal.terminate()


def test_a_desktop_may_fill_the_display(control: Control, client: Client) -> None:
    terminal = client.terminal(
        control, type=SessionType.DESKTOP, command="xclock", geometry="fullscreen"
    )
    session = terminal.start()
    wait(lambda: client.sees(f'"X2GO-{session.name}"'))
    found = re.search(r'"X2GO-.*X2GoAgent"\)  (\d+x\d+)', client.display.windows())
    assert found is not None
    assert found[1] == "1280x800" == screen_size(client.environment)
    terminal.terminate()


def test_a_published_session_runs_applications_one_by_one(
    control: Control, client: Client
) -> None:
    terminal = client.terminal(control, type=SessionType.PUBLISHED)
    session = terminal.start()
    assert session.name.endswith("_stRPUBLISHED_dp24")
    terminal.run_published("xclock")
    wait(lambda: client.sees('"xclock"'))
    terminal.run_published("xterm")
    wait(lambda: client.sees('"xterm"'))
    terminal.terminate()


def test_a_desktop_of_one_s_own_is_seen_twice(control: Control, client: Client) -> None:
    first = client.terminal(
        control, type=SessionType.DESKTOP, command="xclock", geometry="400x300"
    )
    shown = first.start()
    wait(lambda: client.sees(f'"X2GO-{shown.name}"'))
    (desktop,) = [
        each for each in control.desktops() if each.display == str(shown.display)
    ]
    second = client.terminal(control, type=SessionType.SHADOW, desktop=str(desktop))
    shadow = second.start()
    wait(lambda: client.sees(f'"X2GO-{shadow.name}"'))
    assert {info.type for info in control.sessions()} == {
        SessionType.DESKTOP,
        SessionType.SHADOW,
    }
    second.terminate()
    first.terminate()
    assert control.sessions() == []


def test_a_session_ends_with_its_application(control: Control, client: Client) -> None:
    terminal = client.terminal(control, command="xterm -e true")
    terminal.start()
    assert terminal.wait(PATIENCE_S)
    assert terminal.state is State.TERMINATED
    (ended,) = client.heard(events.SessionTerminated)
    assert not ended.by_us  # type: ignore[attr-defined]
    assert control.sessions() == []


def test_a_session_whose_nxproxy_dies_is_suspended_and_can_be_resumed(
    control: Control, client: Client, x2go_server: X2goServer
) -> None:
    terminal = client.terminal(control, **CLOCK)
    session = terminal.start()
    os.kill(proxy_of(session.local_folder), signal.SIGKILL)
    assert terminal.wait_for(State.SUSPENDED, timeout_s=PATIENCE_S)
    assert not client.heard(events.SessionSuspended)[0].by_us  # type: ignore[attr-defined]
    # The server has cleaned up behind it; our connection was not part of that.
    with x2go_server.connect() as other:
        assert Control(other).sessions()[0].is_suspended
    assert control.is_alive
    terminal.resume()
    wait(lambda: client.sees('"xclock"'))
    terminal.terminate()


@pytest.mark.parametrize("suspended", [False, True])
def test_a_session_is_over_when_its_agent_died(
    control: Control, client: Client, suspended: bool
) -> None:
    terminal = client.terminal(control, **CLOCK)
    session = terminal.start()
    if suspended:
        terminal.suspend()
    os.kill(session.agent_pid, signal.SIGKILL)
    if suspended:
        with pytest.raises(NoSuchSession, match="is over"):
            terminal.resume()
    assert terminal.wait(PATIENCE_S)
    assert terminal.state is State.TERMINATED
    assert control.sessions() == []


def test_a_session_outlives_its_connection(
    client: Client, x2go_server: X2goServer
) -> None:
    with x2go_server.connect() as first:
        terminal = client.terminal(Control(first), **CLOCK)
        name = terminal.start().name
        x2go_server.kill_sessions()
        assert terminal.wait_for(State.LOST, timeout_s=PATIENCE_S)
    assert client.heard(events.ConnectionDied)[0].session == name
    with x2go_server.connect() as second:
        terminal.use(Control(second))
        terminal.resume()
        wait(lambda: client.sees('"xclock"'))
        terminal.terminate()
        assert Control(second).sessions() == []


def test_a_session_can_be_taken_over_by_another_client(
    control: Control, client: Client, x2go_server: X2goServer
) -> None:
    first = client.terminal(control, **CLOCK)
    name = first.start().name
    with x2go_server.connect() as tunnel:
        there = Control(tunnel)
        info = there.find_session(name)
        assert info is not None
        options = SessionOptions(**CLOCK)
        second = Terminal.of_listed(there, info, options, **client.more())
        second.resume()
        assert first.wait_for(State.SUSPENDED, timeout_s=PATIENCE_S * 2)
        wait(lambda: client.sees('"xclock"'))
        second.terminate()


# What goes wrong.


def test_a_program_that_is_missing_is_told_before_anything_starts(
    control: Control, client: Client
) -> None:
    terminal = client.terminal(control, command="no-such-program --now")
    with pytest.raises(NoSuchCommand, match="no program 'no-such-program'"):
        terminal.start()
    assert client.heard(events.CommandMissing)
    assert client.heard(events.SessionFailed)
    assert (terminal.state, control.sessions()) == (State.FAILED, [])


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PATH": "/nowhere"}, "there is no nxproxy here"),
        ({"DISPLAY": ""}, "there is no X display here"),
        ({"DISPLAY": ":4999"}, "no X server answers at the display :4999"),
    ],
)
def test_a_client_that_cannot_show_windows_says_so_at_once(
    control: Control, client: Client, environment: dict[str, str], says: str
) -> None:
    client.environment |= environment
    with pytest.raises(GraphicsError, match=says):
        client.terminal(control, **CLOCK).start()


def test_a_session_without_graphics_is_ended_on_the_server(
    control: Control, client: Client, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "nxproxy"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'Error: no fonts today.'\nexit 1\n")
    broken.chmod(0o755)
    client.environment["PATH"] = f"{broken.parent}:{os.environ['PATH']}"
    with pytest.raises(GraphicsError, match="no fonts today"):
        client.terminal(control, **CLOCK).start()
    assert control.sessions() == []
    assert list(client.root.iterdir()) == []


class Interrupted(BaseException):
    """What a signal's handler raises, between any two instructions."""


class InterruptedPool(ThreadPoolExecutor):
    """One whose user is interrupted just when it has got something to do."""

    def submit(self, *arguments: Any, **named: Any) -> NoReturn:
        super().submit(*arguments, **named)
        raise Interrupted


def test_an_agent_that_starts_while_its_client_is_told_to_end_is_ended(
    control: Control, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2go_session.terminal.ThreadPoolExecutor", InterruptedPool)
    with pytest.raises(Interrupted):
        client.terminal(control, **CLOCK).start()
    assert control.sessions() == []


def test_a_session_is_not_ended_while_it_is_being_resumed(
    control: Control, client: Client
) -> None:
    """Its agent would survive: whoever ends it waits until it runs."""
    terminal = client.terminal(control, **CLOCK)
    terminal.start()
    terminal.suspend()
    resuming = threading.Thread(target=terminal.resume)
    resuming.start()
    assert terminal.wait_for(State.RESUMING, timeout_s=PATIENCE_S)
    terminal.terminate()
    resuming.join()
    assert (terminal.state, control.sessions()) == (State.TERMINATED, [])


def proxy_of(folder: Path) -> int:
    """Return the pid of the nxproxy that works in a folder."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if line.startswith(b"nxproxy") and str(folder).encode() in line:
            return int(entry.parent.name)
    raise AssertionError(f"no nxproxy works in {folder}")
