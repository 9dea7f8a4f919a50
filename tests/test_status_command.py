"""`rtunnel status` and `rtunnel open --status --tui`, as processes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from rtunnel.cli.exit_status import ExitStatus
from rtunnel.cli.status_view import Changes, View, age, lines, size
from rtunnel.status import runtime
from rtunnel.status.model import ProcessStatus
from rtunnel.status.runtime import published, running
from tests.support.command import ROOT, Command, open_arguments
from tests.support.sshd import Sshd, wait_until
from tests.support.statuses import HOSTILE, STARTED, connection, get, process, row
from tests.support.tunnels import Target, echo, read_exactly, visit

WAIT_S = 30.0


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of the test's own, for it and for the processes it starts."""
    # Longer than what the name of a socket may be.
    folder = tmp_path / ("long-" * 25)
    folder.mkdir()
    monkeypatch.setenv("RTUNNEL_RUNTIME_DIR", str(folder / "rtunnel"))
    return folder


def source() -> ProcessStatus:
    return process(connection(row(connections_total=7)))


@contextmanager
def opened(sshd: Sshd, *arguments: str) -> Iterator[Command]:
    flags = open_arguments(sshd, *arguments)
    with Command(*flags, f"{sshd.user}@127.0.0.1") as command:
        yield command


def status(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rtunnel", "status", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def on_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `rtunnel` with its output on a terminal; give it and the user's end."""
    user, slave = os.openpty()
    started = subprocess.Popen(
        [sys.executable, "-m", "rtunnel", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "TERM": "xterm-256color",
            "COLUMNS": "200",
            "LINES": "40",
        },
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield started, user
    finally:
        started.kill()
        started.wait()
        os.close(user)


def read_until(terminal: int, pattern: str) -> str:
    """Read what is shown until it has the pattern; without colours."""
    seen = b""
    while True:
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
        if re.search(pattern, text):
            return text
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            pytest.fail(f"it ended without {pattern!r}: {text!r}")


# Finding processes.


def test_a_process_is_found_while_it_is_published(runtime_dir: Path) -> None:
    assert running() == []
    with published(source):
        (found,) = running()
        assert (found.pid, found.error) == (os.getpid(), None)
        assert found.status == source()
    assert running() == []
    assert list((runtime_dir / "rtunnel").iterdir()) == []


def test_nobody_else_can_look_into_the_folder(runtime_dir: Path) -> None:
    with published(source):
        folder = runtime_dir / "rtunnel"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (path,) = folder.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_others_could_look_into_is_closed_to_them(
    runtime_dir: Path,
) -> None:
    folder = runtime_dir / "rtunnel"
    folder.mkdir()
    folder.chmod(0o755)
    with published(source):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_in_the_place_of_the_folder_is_not_followed(
    runtime_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (runtime_dir / "rtunnel").symlink_to(tmp_path / "elsewhere")
    with published(source):
        assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "will not find this process" in caplog.text


def test_a_folder_that_cannot_be_made_is_only_a_warning(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (runtime_dir / "rtunnel").write_text("a file")
    with published(source):
        assert running() == []
    assert "will not find this process" in caplog.text


def test_what_a_killed_process_has_left_is_removed(runtime_dir: Path) -> None:
    folder = runtime_dir / "rtunnel"
    folder.mkdir(mode=0o700)

    def leave() -> Path:
        path = folder / "1-dead.sock"
        directory = os.open(folder, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        return path

    assert leave().exists()
    assert running() == []
    assert not leave().exists() or running() == []
    path = leave()
    with published(source):
        assert not path.exists()


def test_a_process_that_does_not_answer_is_told_of(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "ANSWER_TIMEOUT_S", 0.2)
    with published(source), socket.socket(socket.AF_UNIX) as silent:
        folder = os.open(runtime_dir / "rtunnel", os.O_RDONLY)
        silent.bind(f"/proc/self/fd/{folder}/123-silent.sock")
        os.close(folder)
        silent.listen()
        first, second = running()
    assert (first.pid, first.status, first.error) == (123, None, "timed out")
    assert second.status == source()


def test_every_place_where_a_service_of_the_user_may_be_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RTUNNEL_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with published(source):
        assert len(list((tmp_path / "rtunnel").iterdir())) == 1
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert tmp_path / "rtunnel" not in runtime._folders()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert os.getpid() in [found.pid for found in running()]


# The command.


def test_status_shows_an_open_tunnel_and_its_connections(
    runtime_dir: Path, sshd: Sshd
) -> None:
    with (
        Target(echo) as target,
        opened(sshd, "-R", f"127.0.0.1:0:{target.spec}") as command,
    ):
        port = command.port()
        with visit(port) as visitor:
            visitor.sendall(b"x" * 5000)
            read_exactly(visitor, 5000)
            (told,) = json.loads(status("--json").stdout)
            text = status(str(command.process.pid)).stdout
    assert (told["kind"], told["pid"]) == ("open", command.process.pid)
    assert told["ready"] is True
    (link,) = told["connections"]
    assert link["destination"] == f"{sshd.user}@127.0.0.1"
    (shown,) = link["listeners"]
    assert (shown["connections_open"], shown["bytes_in"]) == (1, 5000)
    first, second, third = text.splitlines()
    assert first.startswith(f"open {command.process.pid}: ready, up ")
    assert re.match(rf"  {sshd.user}@127.0.0.1: connected, .*0 rekeys", second)
    assert third == (
        f"    127.0.0.1:{port} -> {target.spec}: listening, 1 open, 1 total, "
        "5.0 kB in, 5.0 kB out"
    )


def test_without_processes_it_says_so(runtime_dir: Path) -> None:
    nothing = status()
    assert nothing.returncode == ExitStatus.ENDED
    assert nothing.stdout == ""
    assert nothing.stderr == "no rtunnel process of this user is running\n"
    assert status("--json").stdout == "[]\n"


def test_a_process_that_is_not_there_is_an_error(runtime_dir: Path) -> None:
    missing = status("4194304")
    assert missing.returncode == ExitStatus.USAGE
    assert "no rtunnel process 4194304 of this user is running" in missing.stderr


def test_watch_writes_a_line_for_each_change_without_a_terminal(
    runtime_dir: Path,
) -> None:
    told = [source()]
    with (
        published(lambda: told[0]),
        Command("status", "--watch", "--interval", "0.1") as command,
    ):
        assert command.line().endswith("home: connected")
        assert "listening, 0 open, 7 total" in command.line()
        told[0] = process(connection(row(state="paused")))
        assert "paused, 0 open, 0 total" in command.line()
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED
        assert command.errors() == ""


def test_watch_with_json_writes_a_list_on_each_line(runtime_dir: Path) -> None:
    with (
        published(source),
        Command("status", "--watch", "--json", "--interval", "0.1") as command,
    ):
        for _ in range(2):
            assert json.loads(command.line())[0]["pid"] == os.getpid()
        command.send(signal.SIGINT)
        assert command.status() == ExitStatus.ENDED


def test_watch_draws_tables_on_a_terminal_and_no_text_of_others_is_obeyed(
    runtime_dir: Path,
) -> None:
    told = [process(connection(row(state=HOSTILE, last_error=HOSTILE)))]
    watching = on_terminal("status", "--watch", "--interval", "0.1")
    with published(lambda: told[0]), watching as (_, terminal):
        text = read_until(terminal, r"bind → target[^$]*owned")
        assert "\x1b[31m\nrtunnel: forged" not in text
        told[0] = process(connection(row(bytes_in=3_000_000)))
        read_until(terminal, r"3\.0 MB [\d.]+ .?B/s +[▁▂▃▄▅▆▇█]+")


@pytest.mark.parametrize("columns", [72, 80, 132, 200])
def test_the_picture_fits_the_terminal_and_names_every_listener(columns: int) -> None:
    long = "the port is held by another process, which does not answer"
    status = process(
        connection(
            row(bytes_in=10**12, connections_total=10**6, stalled=3),
            row("db", "port taken", last_error=long),
            cipher="aes128-gcm@openssh.com",
            rtt_s=0.1,
        )
    )
    console = Console(width=columns, file=io.StringIO(), color_system=None)
    view = View(console)
    for _ in range(30):  # as many samples as there may be
        picture = view.draw([status])
    console.print(picture)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("8080", "port taken", "1.0 TB", "0/1000000", "held"):
        assert part in text
    assert all(len(line) <= columns for line in text.splitlines())


def test_open_serves_its_status_over_http_where_it_is_told(
    runtime_dir: Path, sshd: Sshd
) -> None:
    with opened(
        sshd, "-R", "127.0.0.1:0:localhost:1", "--status", "127.0.0.1:0"
    ) as command:
        port = command.port()
        line = command.line()
        assert line.startswith("status on http://127.0.0.1:")
        (told,) = json.loads(status("--json").stdout)
        assert told["url"] == line.removeprefix("status on ")
        assert status().stdout.splitlines()[0].endswith(f", {told['url']}")
        served = int(line.rstrip("/").rpartition(":")[2])
        assert get(served, "/readyz").status == 200
        assert f'listener="127.0.0.1:{port}"' in get(served, "/metrics").text
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED


@pytest.mark.parametrize("place", ["0.0.0.0:0", "*:0", "192.0.2.1:0"])
def test_open_serves_its_status_to_nobody_else(
    runtime_dir: Path, sshd: Sshd, place: str
) -> None:
    with opened(sshd, "-R", "0:localhost:1", "--status", place) as command:
        assert command.status() == ExitStatus.CONFIGURATION
        assert "loopback only" in command.errors()


@pytest.mark.parametrize("place", ["/run/x", "host:port", "70000"])
def test_a_wrong_status_address_is_a_wrong_command_line(sshd: Sshd, place: str) -> None:
    with opened(sshd, "-R", "0:localhost:1", "--status", place) as command:
        assert command.status() == ExitStatus.USAGE


def test_open_shows_itself_live_and_its_log_above(
    runtime_dir: Path, sshd: Sshd
) -> None:
    flags = open_arguments(sshd, "-R", "127.0.0.1:0:127.0.0.1:1", "--tui")
    with on_terminal(*flags, f"{sshd.user}@127.0.0.1") as (command, terminal):
        text = read_until(terminal, r"127\.0\.0\.1:\d+ → 127\.0\.0\.1:1 +listening")
        found = re.search(r"listening on \S+:(\d+) ->", text)
        assert found
        visit(int(found[1])).close()
        read_until(terminal, r"rtunnel: visitor turned away")
        read_until(terminal, r"cannot")
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == ExitStatus.ENDED


def test_open_shows_itself_as_lines_without_a_terminal(
    runtime_dir: Path, sshd: Sshd
) -> None:
    with opened(sshd, "-R", "127.0.0.1:0:127.0.0.1:1", "--tui") as command:
        port = command.port()
        assert command.line().endswith(f"{sshd.user}@127.0.0.1: connected")
        assert "listening, 0 open" in command.line()
        visit(port).close()
        assert "1 refused, 1 errors" in command.line()
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED


def test_the_log_of_open_can_be_json(runtime_dir: Path, sshd: Sshd) -> None:
    arguments = ("-R", "127.0.0.1:0:127.0.0.1:1", "-v", "--log-format", "json")
    with opened(sshd, *arguments) as command:
        port = command.port()
        visit(port).close()
        wait_until(lambda: "turned away" in command.errors(), WAIT_S)
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED
        told = [json.loads(line) for line in command.errors().splitlines()]
    (refused,) = (each for each in told if each["event"].startswith("visitor turned"))
    assert refused["listener"] == f"127.0.0.1:{port}"
    assert refused["visitor"] == "127.0.0.1"
    assert {each["level"] for each in told} <= {"info", "warning"}


def test_the_log_has_each_connection_with_what_it_moved_and_not_what_it_said(
    runtime_dir: Path, sshd: Sshd
) -> None:
    with Target(echo) as target:
        forward = ("-R", f"127.0.0.1:0:{target.spec}")
        with opened(sshd, *forward, "-vvv", "--log-format", "json") as command:
            port = command.port()
            with visit(port) as visitor:
                visitor.sendall(b"the-payload" * 10)
                read_exactly(visitor, 110)
            wait_until(lambda: "connection ended" in command.errors(), WAIT_S)
            command.send(signal.SIGTERM)
            assert command.status() == ExitStatus.ENDED
            text = command.errors()
    told = [json.loads(line) for line in text.splitlines()]
    (begun,) = (each for each in told if each["event"] == "connection opened")
    (ended,) = (each for each in told if each["event"] == "connection ended")
    assert begun["conn"] == ended["conn"]
    assert begun["target"] == target.spec
    assert isinstance(begun["chan"], int)
    assert (ended["bytes_in"], ended["bytes_out"]) == (110, 110)
    assert ended["duration_s"] > 0
    assert ended["reason"] == "closed"
    assert "the-payload" not in text


# What is shown.


def test_lines_say_what_is_wrong() -> None:
    bad = row(state="port taken", refused=2, errors=1, stalled=3, last_error="no luck")
    text = "\n".join(lines(process(connection(bad, state="waiting", last_error="cut"))))
    for part in (
        "not ready",
        "home: waiting",
        "last error: cut",
        "port taken",
        "3 stalled",
        "2 refused, 1 errors",
        "last error: no luck",
    ):
        assert part in text


def test_lines_are_told_again_only_when_they_have_changed() -> None:
    with_traffic, without = Changes(traffic=True), Changes(traffic=False)
    first = [process(connection(row(bytes_in=1)))]
    more = [process(connection(row(bytes_in=2)))]
    assert [len(each.of(first)) for each in (with_traffic, without)] == [2, 2]
    assert [len(each.of(first)) for each in (with_traffic, without)] == [0, 0]
    assert [len(each.of(more)) for each in (with_traffic, without)] == [1, 0]
    assert [" gone: " in line for line in without.of([])] == [True, True]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_ages_are_for_people() -> None:
    assert re.fullmatch(r"\d+ d \d+ h", age(STARTED))
