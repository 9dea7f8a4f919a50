"""`rtunnel gateway`, as somebody types it."""

from __future__ import annotations

import configparser
import http.client
import json
import signal
import socket
from pathlib import Path

import pytest

from rtunnel.cli.gateway_command import gateway as gateway_command
from rtunnel.gateway.host_key import load_or_make
from tests.support.command import ROOT, Command
from tests.support.gateways import Guest
from tests.support.ports import free_port, listens
from tests.support.sshd import wait_until
from tests.support.tunnels import TIMEOUT_S, ask, say

EXAMPLES = ROOT / "examples" / "gateway"


class Running(Command):
    """`rtunnel gateway` that has said where it is."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        super().__init__(
            "gateway", "--listen", "127.0.0.1:0", *arguments, **environment
        )
        self.said: dict[str, str] = {}
        try:
            for start in (
                "gateway on ",
                "host key ",
                "who may log in: ",
                "to try it: ",
            ):
                line = self.line()
                assert line.startswith(start), f"{line!r}, {self.errors()}"
                self.said[start.strip()] = line.removeprefix(start)
        except BaseException:
            self.__exit__()
            raise

    @property
    def gateway_port(self) -> int:
        return int(self.said["gateway on"].rpartition(":")[2])

    def meet(self, guest: Guest, host_key: Path) -> Guest:
        """Tell a guest where the gateway is, and its host key."""
        key = load_or_make(host_key)
        line = f"{key.get_name()} {key.get_base64()}"
        guest.port = self.gateway_port
        guest.known_hosts.write_text(f"[127.0.0.1]:{guest.port} {line}\n")
        return guest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of somebody who has a key, and nothing else."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    return tmp_path


def at_home(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": str(home)}


def test_a_newcomer_needs_no_flag(home: Path) -> None:
    guest = Guest(home)
    guest.user_key.with_suffix(".pub").rename(home / ".ssh" / "id_ed25519.pub")
    with Running(**at_home(home)) as gateway:
        assert gateway.said["who may log in:"] == str(home / ".ssh" / "id_ed25519.pub")
        host_key = home / ".local" / "state" / "rtunnel" / "host_key"
        assert host_key.stat().st_mode & 0o777 == 0o600
        assert f"-p {gateway.gateway_port} 127.0.0.1" in gateway.said["to try it:"]
        with gateway.meet(guest, host_key).serving(say(b"hello")) as ssh:
            assert ask(ssh.port()) == b"hello"


@pytest.mark.parametrize("flags", [("-q",), (), ("-v",)])
def test_visitors_are_logged_if_that_is_asked_for(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    guest = Guest(tmp_path)
    keys = str(guest.user_key.with_suffix(".pub"))
    state = ("--state", str(tmp_path), "--authorized-keys", keys)
    with Running(*state, *flags, **at_home(tmp_path)) as gateway:
        with gateway.meet(guest, tmp_path / "host_key").serving(say(b"12345")) as ssh:
            assert ask(ssh.port()) == b"12345"
            if flags == ("-v",):  # ssh may not be ended before it said CLOSE
                wait_until(lambda: "visitor gone: " in gateway.errors())
        if flags != ("-q",):
            wait_until(lambda: "client gone: " in gateway.errors())
        gateway.send(signal.SIGTERM)
        assert gateway.status() == 0
        errors = gateway.errors()
    assert ("bytes_in=0 bytes_out=5 reason=closed" in errors) is (flags == ("-v",))
    assert (errors == "") is (flags == ("-q",))


def test_authorized_keys_win_over_the_keys_beside_them(home: Path) -> None:
    guest = Guest(home)
    (home / ".ssh" / "authorized_keys").write_text(guest.public)
    (home / ".ssh" / "id_ed25519.pub").write_text("not looked at")
    with Running(**at_home(home)) as gateway:
        assert gateway.said["who may log in:"].endswith("/.ssh/authorized_keys")


def test_without_any_key_it_says_what_to_do(home: Path) -> None:
    with Command("gateway", "--listen", "127.0.0.1:0", **at_home(home)) as command:
        assert command.status() == 8
        assert "ssh-keygen -t ed25519" in command.errors()


def test_it_keeps_its_host_key_and_ends_at_a_signal_with_every_port_free(
    tmp_path: Path,
) -> None:
    guest, state = Guest(tmp_path), tmp_path / "state"
    keys = str(guest.user_key.with_suffix(".pub"))
    flags = ("--state", str(state), "--authorized-keys", keys)
    fingerprints = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        with Running(*flags, **at_home(tmp_path)) as gateway:
            fingerprints.add(gateway.said["host key"])
            with gateway.meet(guest, state / "host_key").forward(1) as ssh:
                port = ssh.port()
                gateway.send(number)
                assert gateway.status() == 0
                assert not listens(port)
                errors = gateway.errors()
                assert "client in: " in errors
                assert "listening: conn=" in errors
                assert "gateway closed" in errors
    assert len(fingerprints) == 1


def test_a_file_says_the_rest_and_flags_win_over_it(tmp_path: Path) -> None:
    guest, port = Guest(tmp_path), free_port()
    config = tmp_path / "gateway.toml"
    config.write_text(
        f"""
        listen = "127.0.0.1:1"
        host_key = "my_key"
        authorized_keys = ["missing"]
        status = "127.0.0.1:0"
        [rights]
        ports = [{port}]
        """
    )
    keys = str(guest.user_key.with_suffix(".pub"))
    flags = ("--config", str(config), "--authorized-keys", keys)
    with Running(*flags, **at_home(tmp_path)) as gateway:
        status = gateway.line().removeprefix("status on http://").rstrip("/")
        guest = gateway.meet(guest, tmp_path / "my_key")
        with guest.serving(say(b"hello"), "0") as ssh:
            assert ssh.port() == port
            assert ask(port) == b"hello"
            wait_until(lambda: bytes_out(status) == 5)
            assert get(status, "/readyz") == "ready\n"
            assert f'"bind": "{port}"' in get(status, "/status")
            assert 'connection="guest@127.0.0.1"' in get(status, "/metrics")


def test_the_file_is_taken_over_at_sighup_unless_it_is_wrong(tmp_path: Path) -> None:
    guest, ports = Guest(tmp_path), (free_port(), free_port())
    config = tmp_path / "gateway.toml"

    def write(port: object) -> None:
        config.write_text(f"[rights]\nports = [{port}]\n")

    keys = str(guest.user_key.with_suffix(".pub"))
    flags = ("--config", str(config), "--state", str(tmp_path), "--authorized-keys")
    write(ports[0])
    with Running(*flags, keys, "-v", **at_home(tmp_path)) as gateway:
        guest = gateway.meet(guest, tmp_path / "host_key")
        with guest.serving(say(b"stays")) as ssh:
            assert ssh.port() == ports[0]
            write(ports[1])
            gateway.send(signal.SIGHUP)
            wait_until(lambda: "settings taken over" in gateway.errors())
            with guest.serving(say(b"new")) as other:
                assert other.port() == ports[1]
            assert ask(ports[0]) == b"stays"
        write('"wrong"')
        gateway.send(signal.SIGHUP)
        wait_until(lambda: "not taken over: " in gateway.errors())
        assert "gateway.toml:2: rights.ports[0]" in gateway.errors()
        with guest.serving(say(b"new")) as ssh:
            assert ssh.port() == ports[1]


def test_systemd_is_told_when_it_serves_and_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "keys").touch(0o600)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(TIMEOUT_S)
        environment = at_home(tmp_path) | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        flags = ("--authorized-keys", str(tmp_path / "keys"))
        with Running(*flags, **environment) as gateway:
            text = systemd.recv(1000).decode()
            assert text == f"READY=1\nSTATUS=port {gateway.gateway_port}"
            gateway.send(signal.SIGTERM)
            assert systemd.recv(1000).startswith(b"STOPPING=1")


def test_the_unit_starts_what_there_is() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(EXAMPLES / "rtunnel-gateway.service")
    command = unit["Service"]["ExecStart"].split()
    assert command[:3] == ["/usr/bin/env", "rtunnel", "gateway"]
    parameters = gateway_command.make_context("gateway", command[3:]).params
    assert parameters["config_file"] == Path("/etc/rtunnel/gateway.toml")
    assert unit["Service"]["Type"] == "notify"


def get(place: str, path: str) -> str:
    connection = http.client.HTTPConnection(place, timeout=20)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def bytes_out(place: str) -> int:
    """Return what visitors were sent, by the status of the one listener."""
    status = json.loads(get(place, "/status"))
    assert status["kind"] == "gateway"
    (connection,) = status["connections"]
    assert connection["destination"].startswith("guest@127.0.0.1:")
    return int(connection["listeners"][0]["bytes_out"])


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--listen", "nonsense"), 2, "nonsense"),
        (("--listen", "/a/path"), 8, "no address with a port"),
        (("--config", "missing.toml"), 8, "cannot read missing.toml"),
        (("--authorized-keys", "missing"), 8, "cannot read authorized keys"),
        (
            ("--status", "192.0.2.1:80", "--authorized-keys", "empty"),
            8,
            "loopback only",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line_on_stderr(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch(0o600)
    listen = () if flags[0] == "--listen" else ("--listen", "127.0.0.1:0")
    with Command("gateway", "-q", *listen, *flags, **at_home(tmp_path)) as command:
        assert command.status() == status
        assert message in command.errors()
        assert command.errors().count("\n") == 1
