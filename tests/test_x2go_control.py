"""Commands on a real X2Go server: between markers, with their status, in time."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator

import pytest

from rtunnel import Tunnel
from rtunnel.errors import RequestTimeout
from tests.support.x2go import X2goServer
from x2go_session.control import SERVER_PATH, Control
from x2go_session.errors import (
    AccessDenied,
    ControlError,
    NoSuchSession,
    NotInstalled,
    SessionLimitReached,
)
from x2go_session.options import SessionOptions
from x2go_session.session import SessionType

NOBODY = "x2gt-50-1700000000_stRxclock_dp24"
FakeCommand = Callable[[str, str], Control]


@pytest.fixture
def fake_command(x2go_server: X2goServer, x2go_tunnel: Tunnel) -> FakeCommand:
    """Put a command of the server's in place of the real one."""
    folder = x2go_server.home / "bin"

    def put(name: str, script: str) -> Control:
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return Control(x2go_tunnel, server_path=f"{folder}:{SERVER_PATH}")

    return put


@pytest.fixture
def noisy_shell(x2go_server: X2goServer) -> Iterator[None]:
    """A .bashrc that writes to stdout and stderr, as some do."""
    bashrc = x2go_server.home / ".bashrc"
    before = bashrc.read_text()
    bashrc.write_text(
        "echo 'Welcome to X2GODATABEGIN:'; printf 'no newline'; echo oops >&2\n"
        + before
    )
    yield
    bashrc.write_text(before)


def test_a_command_gives_its_output_and_status(control: Control) -> None:
    result = control.run("echo one; echo two >&2; exit 3")
    assert (result.stdout, result.stderr, result.status) == ("one\n", "two\n", 3)


def test_the_end_marker_may_be_glued_to_the_data(control: Control) -> None:
    assert control.run("printf STARTING").stdout == "STARTING"


@pytest.mark.usefixtures("noisy_shell")
def test_what_a_bashrc_prints_is_not_an_answer(control: Control) -> None:
    assert control.run("printf data").stdout == "data"
    assert "X2GO_PRINTING" in control.features()


def test_quotes_dollars_and_lines_arrive_as_they_are(control: Control) -> None:
    command = """printf '%s' "it's" '"$HOME"' '`id`' 'a\nb'"""
    assert control.run(command).stdout == """it's"$HOME"`id`a\nb"""


def test_the_time_covers_the_reading(control: Control) -> None:
    with pytest.raises(RequestTimeout):
        control.run("while :; do echo on and on; sleep 0.1; done", timeout_s=1)
    assert control.run("echo well").stdout == "well\n"


def test_a_command_that_is_not_there_is_told_apart(control: Control) -> None:
    with pytest.raises(NotInstalled, match="has no x2gonothing: is x2goserver inst"):
        control.check("x2gonothing")


def test_a_failure_has_the_words_of_the_server(control: Control) -> None:
    with pytest.raises(ControlError, match=r"^x2goversion failed .*'--nothing'"):
        control.check("x2goversion --nothing")


def test_a_login_shell_that_runs_nothing_is_explained(
    control: Control, x2go_server: X2goServer
) -> None:
    bashrc = x2go_server.home / ".bashrc"
    before = bashrc.read_text()
    bashrc.write_text("echo This account is closed.; exit 1\n" + before)
    try:
        with pytest.raises(ControlError, match=r"did not run.*This account is closed"):
            control.run("echo")
    finally:
        bashrc.write_text(before)


def test_a_file_is_put_with_its_mode(control: Control, x2go_server: X2goServer) -> None:
    path = x2go_server.home / "put here"
    control.put_file(str(path), b"\0content", 0o600)
    assert path.read_bytes() == b"\0content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == x2go_server.uid
    path.unlink()


def test_a_file_that_may_not_be_put_is_an_error(control: Control) -> None:
    with pytest.raises(ControlError, match="would not have /proc/nothing written"):
        control.put_file("/proc/nothing", b"")


# What there is on the server.


def test_the_server_tells_what_it_is(control: Control, x2go_server: X2goServer) -> None:
    assert {"X2GO_MOUNTDIRS", "X2GO_LIST_SHADOWSESSIONS"} <= control.features()
    assert control.versions()["x2goserver"].startswith("4.")
    assert control.home == str(x2go_server.home)
    assert control.session_limit() is None
    assert control.can_mount()


def test_programs_are_looked_for(control: Control) -> None:
    assert control.has_program("xclock -update 1")
    assert control.has_program("/usr/bin/xterm")
    assert control.has_program("TERMINAL")
    assert not control.has_program("/usr/bin/no-such-program --now")


def test_published_applications_have_names_and_commands(
    control: Control, x2go_server: X2goServer
) -> None:
    folder = x2go_server.home / ".x2go" / "applications"
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder.parent, x2go_server.uid, -1)
    (folder / "clock.desktop").write_text(
        "[Desktop Entry]\nType=Application\nName=Clock\nName[de]=Uhr\n"
        "Exec=xclock -update 1 %U\nCategories=Utility;\n"
    )
    found = {each.name: each for each in control.applications()}
    clock = found["Clock"]
    assert (clock.command, clock.menu) == ("xclock -update 1", "Utilities")
    assert clock.name_in("de_AT") == "Uhr"
    (folder / "clock.desktop").unlink()


def test_there_is_nothing_where_nothing_was_started(control: Control) -> None:
    assert control.sessions() == []
    # Sessions of others may be there.
    assert set(control.servers()) <= {socket.gethostname()}
    assert control.state(NOBODY) == ""
    assert control.mounts(NOBODY) == []
    assert control.wait_state(NOBODY, ("RUNNING", "")) == ""


def test_an_agent_that_is_writing_its_state_is_not_taken_for_gone(
    control: Control,
) -> None:
    control.run(f"mkdir -p .x2go/C-{NOBODY} && : > .x2go/C-{NOBODY}/state")
    writing = threading.Timer(
        0.5, control.run, [f"echo SUSPENDED > .x2go/C-{NOBODY}/state"]
    )
    writing.start()
    assert control.wait_state(NOBODY, ("SUSPENDED", "TERMINATED", "")) == "SUSPENDED"
    writing.join()
    control.run(f"rm -r .x2go/C-{NOBODY}")
    assert control.wait_state(NOBODY, ("SUSPENDED", "TERMINATED", "")) == ""


def test_a_session_that_is_not_there_cannot_be_resumed(control: Control) -> None:
    with pytest.raises((NoSuchSession, ControlError)):
        control.resume_session(NOBODY, SessionOptions())
    control.suspend_session(NOBODY)
    control.terminate_session(NOBODY)


def test_a_stranger_s_desktop_is_denied(control: Control) -> None:
    options = SessionOptions(type=SessionType.SHADOW, desktop="otheruser@:50")
    with pytest.raises(AccessDenied, match=r"may not be shared.*ACCESS DENIED"):
        control.start_agent(options)
    assert control.sessions() == []


# What other servers answer.


def test_a_session_limit_is_told_apart(fake_command: FakeCommand) -> None:
    fake_command("x2gosessionlimit", "echo LIMIT")
    control = fake_command("x2gostartagent", "echo LIMIT 3 >&2; exit 9")
    with pytest.raises(SessionLimitReached, match="no more sessions"):
        control.session_limit()
    with pytest.raises(SessionLimitReached, match="LIMIT 3"):
        control.start_agent(SessionOptions())


def test_an_answer_of_something_else_is_an_error(fake_command: FakeCommand) -> None:
    control = fake_command("x2gostartagent", "echo 50; echo no cookie; echo 3")
    with pytest.raises(ControlError, match=r"answered something else.*no cookie"):
        control.start_agent(SessionOptions())


def test_an_agent_that_does_not_start_is_told_in_its_own_words(
    fake_command: FakeCommand,
) -> None:
    control = fake_command("x2gostartagent", "echo cannot find a font >&2; exit 12")
    with pytest.raises(ControlError, match=r"x2gostartagent failed.*find a font"):
        control.start_agent(SessionOptions())


def test_an_agent_whose_port_was_taken_is_started_again(
    fake_command: FakeCommand,
) -> None:
    fake_command("x2goterminate-session", 'echo "$1" >>~/ended')
    control = fake_command(
        "x2gostartagent",
        "echo x >>~/tries; [ $(wc -l <~/tries) -gt 2 ] || "
        f"{{ echo 'Agent with ID {NOBODY}. terminated' >&2; exit 12; }}; "
        f"printf '%s\\n' 50 {'0' * 32} 1 {NOBODY} 1 2 3",
    )
    assert control.start_agent(SessionOptions()).name == NOBODY
    assert control.run("cat ended; rm ended tries").lines == [NOBODY] * 2


def test_lines_of_something_else_are_no_sessions(fake_command: FakeCommand) -> None:
    row = "1|x2gt-50-1700000000_stRxclock_dp24|50|vm|R||||||||||||"
    evil = row.replace("x2gt-50", "../../x2gt-50")
    control = fake_command(
        "x2golistsessions",
        f"echo 'a warning|of it'; echo '{row}'; echo '{evil}'; echo '||||||||||'",
    )
    names = [info.name for info in control.sessions()]
    assert names == ["x2gt-50-1700000000_stRxclock_dp24"]
