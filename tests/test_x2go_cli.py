"""The `x2go-session` command against a real X2Go server, as a shell would run it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import ROOT
from tests.support.ports import free_port
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from x2go_session.control import Control

pytestmark = pytest.mark.timeout(300)


class Shell:
    """Runs `x2go-session` with what it needs to get into the server of the tests."""

    def __init__(self, server: X2goServer, display: Display, home: Path) -> None:
        self.server = server
        self.home = home
        self.environment = {
            **os.environ,
            "DISPLAY": display.name,
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
        }

    def words(self, verb: str, *arguments: str, port: int | None = None) -> list[str]:
        server = self.server
        flags = ["-p", str(port or server.port), "-i", str(server.user_key)]
        flags += ["-F", "none", "-o", f"UserKnownHostsFile={server.known_hosts}"]
        place = f"{server.user}@{server.host}"
        return [sys.executable, "-m", "x2go_session", verb, *flags, *arguments, place]

    def run(
        self, verb: str, *arguments: str, session: str = "", port: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = self.words(verb, *arguments, port=port)
        return subprocess.run(
            [*words, session] if session else words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 3,
            stdin=subprocess.DEVNULL,
        )

    @contextlib.contextmanager
    def holding(self, verb: str, *arguments: str) -> Iterator[Holding]:
        """Run a command that stays with its session; it is told to end at the end."""
        process = subprocess.Popen(
            self.words(verb, "--json", *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        holding = Holding(process)
        try:
            yield holding
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE_S * 2)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            holding.close()


class Holding:
    """A running command, and the events that it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def told(self, name: str) -> dict[str, Any]:
        """Wait for an event; return it."""

        def there() -> bool:
            return any(each["event"] == name for each in self.events) or not (
                self._reader.is_alive()
            )

        wait_until(there, PATIENCE_S * 3)
        for each in self.events:
            if each["event"] == name:
                return each
        assert self.process.stderr is not None
        raise AssertionError(f"no {name}: {self.events} {self.process.stderr.read()}")

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S * 3)

    def close(self) -> None:
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def shell(
    x2go_server: X2goServer, client_display: Display, tmp_path: Path
) -> Iterator[Shell]:
    yield Shell(x2go_server, client_display, tmp_path)
    x2go_server.end_sessions()


def test_a_session_is_started_looked_at_shared_with_and_terminated(
    shell: Shell, tmp_path: Path, client_display: Display
) -> None:
    papers, pictures = tmp_path / "papers", tmp_path / "my pictures"
    for folder in (papers, pictures):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    arguments = ["--type", "R", "--command", "xclock", "--geometry", "400x300"]
    arguments += ["--share", str(papers), "--printing", "pdfsave"]
    with shell.holding("start", *arguments) as client:
        started = client.told("session-started")
        name = started["session"]
        assert set(started["ports"]) == {"graphics", "sound", "sharing"}
        wait_until(lambda: '"xclock"' in client_display.windows(), PATIENCE_S)
        mount_point = client.told("folder-shared")["mount_point"]
        assert shell.server.as_user("cat", f"{mount_point}/file") == "papers"

        listed = json.loads(shell.run("list", "--json").stdout)
        assert (listed["session"], listed["state"]) == (name, "running")
        assert listed["shown_here"] is True

        shared = shell.run("share", "--folder", str(pictures), "--json", session=name)
        there = json.loads(shared.stdout)["mount_point"]
        assert shell.server.as_user("cat", f"{there}/file") == "my pictures"
        assert shell.run("unshare").returncode == 0
        wait_until(lambda: there not in shell.server.mounts(), PATIENCE_S)
        assert "no print jobs" in shell.run("print-jobs").stdout

        done = shell.run("terminate")
        assert (done.stdout, done.returncode) == (f"terminated: {name}\n", 0)
        assert client.ended() == 0
        assert client.told("session-terminated")["by_us"] is True
    assert shell.run("list").stdout == "no sessions\n"
    assert shell.server.mounts() == []


def test_a_client_that_is_told_to_end_leaves_the_session_suspended(
    shell: Shell, client_display: Display
) -> None:
    with shell.holding("start", "--command", "xclock") as client:
        name = client.told("session-started")["session"]
        client.process.send_signal(signal.SIGINT)
        assert client.ended() == 0
        assert client.told("session-suspended")["by_us"] is True
    assert f"{name}  suspended" in shell.run("list").stdout
    with shell.holding("resume", "--at-exit", "terminate") as client:
        assert client.told("session-resumed")["session"] == name
        wait_until(lambda: '"xclock"' in client_display.windows(), PATIENCE_S)
        client.process.send_signal(signal.SIGTERM)
        assert client.ended() == 0
    assert shell.run("list").stdout == "no sessions\n"


def test_a_client_takes_its_session_up_again_when_the_connection_was_lost(
    shell: Shell, client_display: Display
) -> None:
    with shell.holding("start", "--command", "xclock") as client:
        client.told("session-started")
        shell.server.kill_sessions()
        client.told("connection-died")
        client.told("session-resumed")
        wait_until(lambda: '"xclock"' in client_display.windows(), PATIENCE_S)
        with shell.server.connect() as tunnel:
            assert Control(tunnel).sessions()[0].is_running
        assert shell.run("suspend").returncode == 0
        assert client.ended() == 0


def test_a_client_that_is_told_to_end_while_it_starts_leaves_nothing(
    shell: Shell,
) -> None:
    with shell.holding("start", "--command", "xclock") as client:

        def begun() -> bool:
            steps = [each.get("step") for each in client.events]
            return "starting the agent" in steps

        wait_until(begun, PATIENCE_S)
        client.process.send_signal(signal.SIGTERM)
        assert client.ended() == 0
    assert shell.run("list").stdout == "no sessions\n"
    wait_until(
        lambda: (
            not any("x2goagent" in each for each in shell.server.processes().values())
        ),
        PATIENCE_S,
    )


# What goes wrong.


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--command", "no-such-program"], 11, "the server has no program"),
        (["--geometry", "big"], 2, "geometry 'big': use WIDTHxHEIGHT"),
        (["--type", "S"], 2, "a SHADOW session needs one"),
        (["--share", "/no/such/folder"], 2, "there is no such folder here"),
        (["--type", "S", "--desktop", "nobody@:50"], 12, "may not be shared"),
    ],
)
def test_what_cannot_be_started_is_one_line(
    shell: Shell, arguments: list[str], status: int, says: str
) -> None:
    done = shell.run("start", "-q", *arguments)
    assert says in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1)


def test_a_machine_without_a_display_says_so(shell: Shell) -> None:
    del shell.environment["DISPLAY"]
    done = shell.run("start", "-q")
    assert "there is no X display here" in done.stderr
    assert done.returncode == 14


def test_a_server_that_is_not_there_says_so(shell: Shell) -> None:
    done = shell.run("list", port=free_port())
    assert done.stderr.startswith("x2go-session: ")
    assert done.returncode == 3


def test_a_session_that_is_not_there_says_so(shell: Shell) -> None:
    done = shell.run("terminate", session="nothing")
    assert "no session nothing; it lists none" in done.stderr
    assert done.returncode == 13
    assert shell.run("share", "--folder", ".").returncode == 13


def test_the_doctor_tells_what_is_there_and_what_is_missing(shell: Shell) -> None:
    done = shell.run("doctor")
    assert "ok      windows: nxproxy, at display" in done.stdout
    assert "ok      x2goserver: version 4." in done.stdout
    assert "ok      FUSE: sshfs and fusermount" in done.stdout
    assert "MISSING sound: " in done.stdout
    assert done.returncode == 0
    del shell.environment["DISPLAY"]
    done = shell.run("doctor", "--json")
    first = json.loads(done.stdout.splitlines()[0])
    assert (first["what"], first["found"], done.returncode) == ("windows", False, 14)
