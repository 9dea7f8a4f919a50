"""`rtunnel run` and `rtunnel verify`, as a shell and as systemd start them."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.cli.exit_status import ExitStatus
from rtunnel.cli.run_command import check_private, run
from rtunnel.errors import ConfigError
from tests.support.command import ROOT, Command
from tests.support.ports import free_port, listens
from tests.support.sshd import Sshd, wait_until
from tests.support.supervising import PATIENCE_S, TomlFile, server_table, toml
from tests.support.tunnels import (
    Target,
    ask,
    digest,
    echo,
    noise,
    read_exactly,
    say,
    visit,
)


@pytest.fixture
def file(tmp_path: Path) -> TomlFile:
    return TomlFile(tmp_path / "tunnels.toml")


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(say(b"hello")) as hello:
        yield hello


def one_tunnel(file: TomlFile, sshd: Sshd, port: int, to: Target) -> str:
    tunnel = {"listen": port, "to": to.spec}
    return str(file.write(a=server_table(sshd, tunnels={"t": tunnel})))


def wait_for(command: Command, text: str) -> None:
    """Wait until the log has this text."""
    wait_until(
        lambda: text in command.errors() or command.process.poll() is not None,
        PATIENCE_S,
    )
    assert text in command.errors(), command.errors()


# From its start to its end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_keeps_tunnels_up_until_a_signal_and_says_so(
    sshd: Sshd, file: TomlFile, target: Target, number: signal.Signals
) -> None:
    port = free_port()
    with Command("run", one_tunnel(file, sshd, port, target)) as command:
        wait_for(command, "running: 1 of 1 tunnels listen")
        assert ask(port) == b"hello"
        command.send(number)
        assert command.status() == ExitStatus.ENDED
        assert not listens(port)
        # No line is lost: the first and the last are there.
        lines = command.errors().splitlines()
        assert lines[0].startswith("rtunnel: connected: server=a ")
        assert lines[-1] == "rtunnel: ending"


def test_a_server_that_is_not_there_is_no_reason_to_end(
    file: TomlFile, sshd: Sshd, target: Target
) -> None:
    table = server_table(sshd, tunnels={"t": {"listen": 1, "to": target.spec}})
    table["destination"] = f"nobody@127.0.0.1:{free_port()}"
    with Command("run", str(file.write(a=table))) as command:
        wait_for(command, "running: 0 of 1 tunnels listen; not connected: a")
        wait_for(command, "not connected: server=a retry_in_s=")
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED


def test_a_server_that_is_silent_does_not_keep_it_from_ending(
    file: TomlFile, sshd: Sshd, target: Target
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"x@127.0.0.1:{silent.getsockname()[1]}"
        file.write(
            a=server_table(sshd, tunnels={"t": {"listen": port, "to": target.spec}}),
            b=server_table(sshd) | {"destination": place},
        )
        with Command("run", str(file.path)) as command:
            wait_until(lambda: listens(port), PATIENCE_S)
            silent.settimeout(PATIENCE_S)
            conn, _ = silent.accept()
            with conn:
                command.send(signal.SIGTERM)
                assert command.status() == ExitStatus.ENDED
            assert "rtunnel: ending" in command.errors()
            wait_until(lambda: not listens(port), PATIENCE_S)


def test_a_file_that_is_wrong_is_status_8_and_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[servers.a]\ndestinatio = "x"\n')
    with Command("run", str(path)) as command:
        assert command.status() == ExitStatus.CONFIGURATION
        assert command.errors().splitlines() == [
            f"rtunnel: {path}:1: servers.a: destination is missing",
            f"{path}:2: servers.a: unknown key 'destinatio'; did you mean destination?",
        ]


def test_the_log_can_be_read_by_programs(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    path = one_tunnel(file, sshd, free_port(), target)
    with Command("run", "--log-format", "json", path) as command:
        wait_for(command, "running")
        records = [json.loads(line) for line in command.errors().splitlines()]
        assert records[0]["event"] == "connected"
        assert records[0]["server"] == "a"


def test_a_log_that_takes_nothing_does_not_end_the_tunnels(
    sshd: Sshd, file: TomlFile, target: Target, tmp_path: Path
) -> None:
    # As on a full disk: each write fails with ENOSPC.
    port = free_port()
    path = one_tunnel(file, sshd, port, target)
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "rtunnel", "run", "-vv", path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=full,
        )
    try:
        wait_until(lambda: listens(port), PATIENCE_S)
        assert ask(port) == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == ExitStatus.ENDED
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# Reload.


def test_sighup_takes_over_what_changed_and_a_mistake_is_only_logged(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    old, new = free_port(), free_port()
    path = one_tunnel(file, sshd, old, target)
    with Command("run", "--no-watch", path) as command:
        wait_for(command, "running")
        file.write_text(Path(path).read_text() + 'alow = ["::1"]\n')
        command.send(signal.SIGHUP)
        wait_for(command, "unknown key 'alow'; did you mean allow?")
        assert ask(old) == b"hello"
        one_tunnel(file, sshd, new, target)
        assert not listens(new)
        command.send(signal.SIGHUP)
        wait_for(command, "taken over: file=")
        wait_until(lambda: listens(new) and not listens(old), PATIENCE_S)


def test_a_storm_of_sighups_harms_no_byte_of_a_live_connection(
    sshd: Sshd, file: TomlFile
) -> None:
    port = free_port()
    with Target(echo) as echoing:
        path = one_tunnel(file, sshd, port, echoing)
        with Command("run", path) as command:
            wait_for(command, "running")
            with visit(port) as sock:
                sent = noise(8_000_000)
                sender = threading.Thread(target=sock.sendall, args=(sent,))
                sender.start()
                for number in range(500):
                    if number % 100 == 0:
                        other = {"listen": free_port(), "to": echoing.spec}
                        both = {"t": {"listen": port, "to": echoing.spec}, "o": other}
                        file.write(a=server_table(sshd, tunnels=both))
                    command.send(signal.SIGHUP)
                assert digest(read_exactly(sock, len(sent))) == digest(sent)
                sender.join(PATIENCE_S)
            wait_for(command, "taken over: file=")
            assert command.process.poll() is None
            command.send(signal.SIGTERM)
            assert command.status() == ExitStatus.ENDED


def test_sighups_before_it_is_ready_do_not_end_it(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    with Command("run", "-v", one_tunnel(file, sshd, port, target)) as command:
        # From when its first line says that it has begun.
        wait_until(lambda: command.errors(), PATIENCE_S)
        for _ in range(20):
            command.send(signal.SIGHUP)
        wait_for(command, "running")
        assert ask(port) == b"hello"


# What systemd sees.


class Systemd:
    """The socket that a service tells how it does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(PATIENCE_S)
        self.seen: list[dict[str, str]] = []

    def wait_for(self, key: str, start: str = "") -> dict[str, str]:
        """Read until something says this, with a value that begins so; return it."""
        while True:
            text = self._socket.recv(4096).decode()
            said = dict(line.split("=", 1) for line in text.splitlines())
            self.seen.append(said)
            if key in said and said[key].startswith(start):
                return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with contextlib.closing(Systemd(tmp_path)) as fake:
        yield fake


def test_systemd_is_told_what_happens(
    file: TomlFile, target: Target, systemd: Systemd, tmp_path: Path
) -> None:
    port = free_port()
    with Sshd(tmp_path / "sshd") as sshd:
        path = one_tunnel(file, sshd, port, target)
        variables = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "900000"}
        with Command("run", path, **variables) as command:
            assert systemd.wait_for("READY")["STATUS"] == "1 of 1 tunnels listen"
            assert listens(port)
            systemd.wait_for("WATCHDOG", "1")
            systemd.wait_for("WATCHDOG", "1")

            command.send(signal.SIGHUP)
            assert int(systemd.wait_for("RELOADING", "1")["MONOTONIC_USEC"]) > 0
            assert systemd.wait_for("READY", "1")["STATUS"] == "1 of 1 tunnels listen"
            file.write_text("nonsense")
            said = systemd.wait_for("STATUS", "not taken over: ")
            assert said["READY"] == "1"
            assert f"{path}:1: " in said["STATUS"]

            sshd.stop()
            systemd.wait_for("STATUS", "0 of 1 tunnels listen; not connected: a")
            sshd.start()
            systemd.wait_for("STATUS", "1 of 1 tunnels listen")

            command.send(signal.SIGTERM)
            systemd.wait_for("STOPPING", "1")
            assert command.status() == ExitStatus.ENDED


def test_systemd_is_told_that_it_is_ready_when_every_server_was_tried(
    file: TomlFile, sshd: Sshd, systemd: Systemd
) -> None:
    table = server_table(sshd) | {"destination": f"x@127.0.0.1:{free_port()}"}
    path = str(file.write(a=table))
    with Command("run", path, NOTIFY_SOCKET=str(systemd.path)):
        assert systemd.wait_for("READY")["STATUS"].endswith("not connected: a")
        assert not any("WATCHDOG" in said for said in systemd.seen)


# Started as systemd does it: with a listening socket as descriptor 3.
WITH_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "rtunnel", *sys.argv[2:]])
"""


def test_the_status_is_on_the_socket_that_systemd_passes(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        tunnel = {"listen": free_port(), "to": target.spec}
        servers = {"a": server_table(sshd, tunnels={"t": tunnel})}
        # That the file names the same place is no conflict.
        path = str(file.write_text(toml({"status": place, "servers": servers})))
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_SOCKET, str(listener.fileno()), "run", path],
            env={**os.environ, "PYTHONPATH": str(ROOT), "LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: fetch(place, "/readyz") == "ready\n", PATIENCE_S)
            status = json.loads(fetch(place, "/status"))
            assert status["kind"] == "run"
            assert status["connections"][0]["listeners"][0]["state"] == "listening"
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == ExitStatus.ENDED


def test_the_status_is_told_to_this_machine_only() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        check_private(sock)
    with socket.socket() as sock:
        sock.bind(("127.0.0.2", 0))
        check_private(sock)
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))  # and does not listen
        with pytest.raises(ConfigError, match=r"on 0\.0\.0\.0: .* ListenStream"):
            check_private(sock)


def fetch(place: str, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{place}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_the_status_is_where_the_file_or_the_command_line_says(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    ports = [free_port(), free_port()]
    tunnel = {"listen": free_port(), "to": target.spec}
    servers = {"a": server_table(sshd, tunnels={"t": tunnel})}
    table = {"status": f"127.0.0.1:{ports[0]}", "servers": servers}
    path = str(file.write_text(toml(table)))
    for port, flags in zip(ports, ([], ["--status", str(ports[1])]), strict=True):
        with Command("run", *flags, path) as command:
            wait_for(command, "running")
            assert fetch(f"127.0.0.1:{port}", "/healthz") == "ok\n"
            assert "rtunnel" in fetch(f"127.0.0.1:{port}", "/metrics")


UNITS = sorted((ROOT / "examples" / "systemd").iterdir())


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_units_start_what_there_is(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    if unit.suffix == ".socket":
        assert parser["Socket"]["ListenStream"].startswith("127.0.0.1:")
        return
    command = parser["Service"]["ExecStart"].split()
    assert command[:3] == ["/usr/bin/env", "rtunnel", "run"]
    assert run.make_context("run", command[3:]).params["file"].name == "tunnels.toml"
    assert parser["Service"]["Type"] == "notify"
    # A unit that gives up after five starts is what autossh is known for.
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    prevented = parser["Service"]["RestartPreventExitStatus"]
    assert int(prevented) == ExitStatus.CONFIGURATION


# verify


def verify(path: Path) -> tuple[int, str, str]:
    with Command("verify", str(path)) as command:
        status = command.status()
        return status, command.line(), command.errors()


def test_verify_says_how_much_there_is(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    path = Path(one_tunnel(file, sshd, free_port(), target))
    assert verify(path) == (0, f"{path} is right: 1 server, 1 tunnel", "")


def test_verify_has_a_line_for_each_mistake(file: TomlFile) -> None:
    path = file.write_text('statu = 1\n[servers.a]\ndestination = "x"\nagent = "no"\n')
    status, said, errors = verify(path)
    assert (status, said) == (ExitStatus.CONFIGURATION, "")
    assert errors.splitlines() == [
        f"{path}:1: unknown key 'statu'; did you mean status?",
        f"{path}:4: servers.a.agent: input should be a valid boolean, not text",
    ]


def test_verify_finds_a_key_that_is_not_there(file: TomlFile, sshd: Sshd) -> None:
    table = server_table(sshd) | {"identity_files": ["missing"]}
    path = file.write(a=table)
    status, _, errors = verify(path)
    assert status == ExitStatus.CONFIGURATION
    assert errors == (
        f"{path}:4: servers.a.identity_files: there is no file "
        f"{path.parent / 'missing'}\n"
    )
