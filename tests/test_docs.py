"""What README.md and docs/ say, tried out: examples, flags, names and tables."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

import rtunnel
from rtunnel import Tunnel, errors
from rtunnel.bench.results import Report
from rtunnel.bench.table import markdown
from rtunnel.cli import COMMANDS, exit_status
from rtunnel.cli.open_command import open_tunnels
from rtunnel.ssh.options import Options
from tests.support.command import ROOT
from tests.support.ports import bound, free_port
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    TIMEOUT_S,
    Target,
    ask,
    background,
    read_all,
    send_and_end,
    visit,
)

README = (ROOT / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
COMMAND = (ROOT / "docs" / "command.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shout(conn: socket.socket) -> None:
    conn.sendall(read_all(conn).upper())


class Place:
    """An sshd and a target here, in the place of those that the examples name."""

    def __init__(self, sshd: Sshd, folder: Path, target: Target) -> None:
        self.sshd = sshd
        self.port = free_port()
        self.server_path = folder / "server.sock"
        self.options: dict[str, Any] = {
            "identity_files": [str(sshd.user_key)],
            "known_hosts": str(sshd.known_hosts),
            "config_file": "none",
            "agent": False,
        }
        destination = f"{sshd.user}@127.0.0.1:{sshd.port}"
        self._instead = {
            '"user@host"': f"{destination!r}, **{self.options!r}",
            '("host", 22)': f"('127.0.0.1', {sshd.port})",
            '"user"': repr(sshd.user),
            "8080": str(self.port),
            "localhost:3000": target.spec,
            '"unix:/run/app.sock"': repr(f"unix:{folder / 'target.sock'}"),
            '"/run/app.sock"': repr(str(self.server_path)),
            "1080": str(free_port()),
            "/srv/www": str(folder),
        }

    def translate(self, example: str) -> str:
        for there, here in self._instead.items():
            example = example.replace(there, here)
        return example


@pytest.fixture
def place(sshd: Sshd, tmp_path: Path) -> Iterator[Place]:
    with (
        Target(shout) as target,
        socket.socket(socket.AF_UNIX) as unix_target,
    ):
        unix_target.bind(str(tmp_path / "target.sock"))
        unix_target.listen()
        yield Place(sshd, tmp_path, target)


# The README's example.


def test_the_readme_s_example_runs(place: Place) -> None:
    (example,) = blocks(README, "python")
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", place.translate(example)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        port = int(process.stdout.readline().removeprefix("greeting on port "))
        assert ask(port) == b"hello 127.0.0.1\n"
        assert call(place.port) == b"HELLO"
        assert place.server_path.is_socket()
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT_S)


# The examples of docs/api.md.


def call(port: int, text: bytes = b"hello") -> bytes:
    with visit(port) as sock:
        send_and_end(sock, text)
        return read_all(sock)


def see_targets(place: Place, names: dict[str, Any]) -> None:
    assert call(place.port) == b"HELLO"
    assert place.server_path.is_socket()


def see_greeting(place: Place, names: dict[str, Any]) -> None:
    assert ask(place.port) == b"hello 127.0.0.1\n"


def see_colours(place: Place, names: dict[str, Any]) -> None:
    listeners = names["tunnel"].listeners
    assert [ask(listener.port) for listener in listeners] == [b"red", b"blue"]


def see_page(place: Place, names: dict[str, Any]) -> None:
    assert call(place.port, b"GET / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\na page\n")


def see_services(place: Place, names: dict[str, Any]) -> None:
    proxy, _, upper = (listener.port for listener in names["tunnel"].listeners)
    assert call(upper) == b"HELLO"
    (place.server_path.parent / "page.txt").write_text("")
    assert b"page.txt" in call(place.port, b"GET / HTTP/1.0\r\n\r\n")
    assert call(proxy, b"\4\1\0\1\x7f\0\0\1\0")[:2] == b"\0\x5b"  # not permitted


def see_visitors(place: Place, names: dict[str, Any]) -> None:
    def come() -> bytes:
        wait_until(lambda: bound(place.port))
        return call(place.port, b"you\n")

    with background(come) as answers:
        asyncio.run(names["main"]())
    assert answers == [b"hello you\n"]


def see_shout(place: Place, names: dict[str, Any]) -> None:
    assert call(place.port, b"hello\n") == b"HELLO\n"


def see_accepted(place: Place, names: dict[str, Any]) -> None:
    with background(names["accept_one"]):
        assert ask(place.port) == b"at last\n"


def see_nothing_left(place: Place, names: dict[str, Any]) -> None:
    assert names["tunnel"].listeners == []


def see_dialled(place: Place, names: dict[str, Any]) -> None:
    assert names["conn"].fileno() == -1


# SOCKS visitors who ask for what is not permitted are counted.
ERRORS = {'tunnel.listen(1080, to="socks", permit_open=': 1}

# What each example has to come to, by a line of it.
SEEN: dict[str, Callable[[Place, dict[str, Any]], None]] = {
    'with rtunnel.connect("user@host") as tunnel:': see_nothing_left,
    "with rtunnel.Tunnel(transport) as other_tunnel:": see_nothing_left,
    'tunnel.listen("/run/app.sock", to="unix:/run/app.sock")': see_targets,
    'tunnel.listen(1080, to="socks", permit_open=': see_services,
    "tunnel.listen(8080, to=greet)": see_greeting,
    'for name in ("red", "blue"):': see_colours,
    "tunnel.listen(8080, to=serve)": see_page,
    "tunnel.listen(8080, to=shout)": see_shout,
    "listener = tunnel.listen(8080)": see_accepted,
    "async def main():": see_visitors,
    "listener.pause()": see_nothing_left,
    "with tunnel.dial(": see_dialled,
}


@pytest.fixture
def tunnel(place: Place) -> Iterator[Tunnel]:
    destination = f"{place.sshd.user}@127.0.0.1:{place.sshd.port}"
    with rtunnel.connect(destination, **place.options) as opened:
        yield opened


@pytest.mark.parametrize("line", SEEN)
def test_the_examples_of_the_api_run(place: Place, tunnel: Tunnel, line: str) -> None:
    (example,) = [
        block
        for block in blocks(API, "python")
        if any(text.startswith(line) for text in block.splitlines())
    ]
    key = paramiko.Ed25519Key.from_private_key_file(str(place.sshd.user_key))
    names: dict[str, Any] = {"tunnel": tunnel, "key": key}
    exec(compile(place.translate(example), "docs/api.md", "exec"), names)
    SEEN[line](place, names)
    assert tunnel.stats().errors == ERRORS.get(line, 0)


def test_every_example_of_the_api_is_run() -> None:
    assert len(blocks(API, "python")) == len(SEEN)


# Names and tables.


def in_code(text: str) -> set[str]:
    """Return the words between backticks."""
    found = re.findall(r"`([^`\n]+)`", text)
    return {word for code in found for word in re.findall(r"-?\w+", code)}


def test_the_api_page_has_every_public_name() -> None:
    described = in_code(API) | set(re.findall(r"\w+", "".join(blocks(API, "python"))))
    transport = {"Transport", "RelayStats", "__version__"}  # docs/paramiko-api.md
    assert set(rtunnel.__all__) - transport - described == set()


def test_the_api_page_has_every_option_of_connect() -> None:
    options = {field.name for field in dataclasses.fields(Options)}
    assert options - in_code(API) == set()


def test_the_api_page_has_every_error() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined - in_code(API) == set()


def test_the_architecture_page_has_every_file() -> None:
    described = in_code((ROOT / "ARCHITECTURE.md").read_text())
    modules = {path.stem for path in (ROOT / "rtunnel").glob("[!_]*/[!_]*.py")}
    modules -= {path.stem for path in (ROOT / "rtunnel" / "bench").glob("*.py")}
    modules |= {path.stem for path in (ROOT / "rtunnel").glob("[!_]*.py")}
    modules |= {path.stem for path in (ROOT / "src" / "pump").glob("*.c")}
    commands = {name for name in modules if name.removesuffix("_command") in COMMANDS}
    assert modules - commands - described == set()


def test_every_step_that_a_page_names_is_in_the_makefile() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    named = {
        words.split()[0]
        for page in pages
        for words in re.findall(
            r"(?:`|^)make ([a-z].*?)(?:`|#|$)", page.read_text(), re.M
        )
    }
    assert {"demo", "test", "audit"} <= named
    steps = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named - steps == set()


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "benchmarks").glob("figures*.json")),
    ids=lambda path: path.stem,
)
def test_the_tables_of_figures_are_those_that_were_measured(path: Path) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    _, *tables = re.split(r"^(?=### )", markdown(Report.load(path)), flags=re.M)
    assert tables
    for table in tables:
        assert table.strip() in page


@pytest.mark.parametrize("page", [README, COMMAND], ids=["README", "command"])
def test_every_exit_status_is_listed(page: str) -> None:
    for status, meaning in exit_status.MEANING.items():
        assert f"| {status.value} | {meaning} |" in page.replace("`", "")


def test_the_command_page_has_every_command_and_every_flag() -> None:
    assert {f"rtunnel {name}" for name in COMMANDS} <= set(
        re.findall(r"`(rtunnel \w+)`", COMMAND)
    )
    flags = {
        name
        for parameter in open_tunnels.params
        for name in parameter.opts
        if name.startswith("-")
    }
    assert flags - set(re.findall(r"`(-\w|--[\w-]+)", COMMAND)) == set()


@pytest.mark.parametrize(
    "line",
    [
        line.removeprefix("$ ")
        for block in blocks(README, "") + blocks(COMMAND, "")
        for line in block.splitlines()
        if "rtunnel open " in line
    ],
)
def test_the_command_lines_are_understood(line: str) -> None:
    arguments = shlex.split(line)[2:]
    assert open_tunnels.make_context("open", arguments).params["forwards"]
