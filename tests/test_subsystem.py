"""The SSH server for one subsystem, with real ssh clients that call back."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rtunnel import KeyPair, SubsystemServer, Tunnel
from tests.support.sshd import wait_until
from tests.support.tunnels import TIMEOUT_S, echo

USER = "somebody"


@dataclass
class Client:
    """What ssh needs to get to a server, through a port of the sshd."""

    server: SubsystemServer
    port: int
    options: list[str]

    def command(self, *arguments: str) -> list[str]:
        return ["ssh", *self.options, *arguments]

    def talk(self, data: bytes, name: str = "echo", user: str = USER) -> bytes:
        """Send data to a subsystem; return what came back."""
        command = self.command("-s", f"{user}@127.0.0.1", name)
        return subprocess.run(
            command, input=data, capture_output=True, timeout=TIMEOUT_S
        ).stdout


@contextmanager
def serving(
    tunnel: Tunnel, folder: Path, serve: Callable[[socket.socket], object] = echo
) -> Iterator[Client]:
    key, host_key = KeyPair.generate(), KeyPair.generate()
    server = SubsystemServer("echo", serve, user=USER, key=key, host_key=host_key)
    key_file, known_hosts = folder / "key", folder / "known_hosts"
    key_file.touch(0o600)
    key_file.write_text(key.private_text)
    with tunnel.listen(("127.0.0.1", 0), to=server.attend) as listener:
        known_hosts.write_text(f"[127.0.0.1]:{listener.port} {host_key.public_line}\n")
        options = ["-F", "none", "-p", str(listener.port), "-i", str(key_file)]
        options += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        options += ["-o", f"UserKnownHostsFile={known_hosts}"]
        yield Client(server, listener.port, options)
    server.close()
    assert server.clients == 0


@pytest.fixture
def client(
    tunnel: Tunnel, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """A server whose subsystem sends back what it gets, on each backend."""
    monkeypatch.setenv("RTUNNEL_BACKEND", backend)
    with serving(tunnel, tmp_path) as made:
        yield made


def test_the_subsystem_carries_bytes_both_ways(client: Client) -> None:
    data = os.urandom(3_000_000)
    assert client.talk(data) == data
    assert client.talk(b"") == b""


def test_nothing_else_is_to_be_had(client: Client) -> None:
    assert client.talk(b"data", name="other") == b""
    assert client.talk(b"data", user="root") == b""
    done = subprocess.run(
        client.command(f"{USER}@127.0.0.1", "id"),
        capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout == b""


def test_many_clients_are_served_at_once(client: Client) -> None:
    found: dict[int, bytes] = {}

    def talk(number: int) -> None:
        found[number] = client.talk(b"%d" % number * 50_000)

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert found == {n: b"%d" % n * 50_000 for n in range(6)}
    wait_until(lambda: client.server.clients == 0, TIMEOUT_S)


def test_one_connection_has_several_channels(client: Client, tmp_path: Path) -> None:
    control = [*("-o", f"ControlPath={tmp_path}/c"), f"{USER}@127.0.0.1"]
    master = subprocess.Popen(client.command("-M", "-N", *control))
    try:
        wait_until(lambda: (tmp_path / "c").exists(), TIMEOUT_S)
        for data in (b"one", b"two", b"three"):
            done = subprocess.run(
                ["ssh", "-F", "none", "-s", *control, "echo"],
                input=data, capture_output=True, timeout=TIMEOUT_S,
            )  # fmt: skip
            assert done.stdout == data
        assert client.server.clients == 1
    finally:
        # By a message: ssh may miss a signal that comes just before it waits.
        leave = ["ssh", "-F", "none", "-O", "exit", *control]
        subprocess.run(leave, capture_output=True, timeout=TIMEOUT_S)
        master.wait(TIMEOUT_S)


def test_a_subsystem_that_fails_ends_its_channel(
    tunnel: Tunnel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(conn: socket.socket) -> None:
        raise RuntimeError("as planned")

    with serving(tunnel, tmp_path, fail) as client:
        assert client.talk(b"data") == b""
    records = [r for r in caplog.records if r.name == "rtunnel.subsystem"]
    assert [r.levelno for r in records if r.exc_info] == [logging.ERROR]


def test_closing_cuts_clients_off(tunnel: Tunnel, tmp_path: Path) -> None:
    with serving(tunnel, tmp_path) as client:
        command = client.command("-s", f"{USER}@127.0.0.1", "echo")
        ssh = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        with ssh.stdout:
            ssh.stdin.write(b"hello")
            ssh.stdin.flush()
            assert ssh.stdout.read(5) == b"hello"
            client.server.close()
            assert ssh.stdout.read() == b""
            with contextlib.suppress(BrokenPipeError):
                ssh.stdin.close()
        ssh.wait(TIMEOUT_S)
        assert client.server.clients == 0
        # Nor does anybody get in any more.
        assert client.talk(b"data") == b""


def test_a_stranger_who_speaks_no_ssh_is_turned_away(
    tunnel: Tunnel, tmp_path: Path
) -> None:
    with serving(tunnel, tmp_path) as client:
        with socket.create_connection(("127.0.0.1", client.port), TIMEOUT_S) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
        wait_until(lambda: client.server.clients == 0, TIMEOUT_S)
        assert client.talk(b"data") == b"data"


def test_a_key_is_made_anew_each_time_and_not_shown() -> None:
    first, second = KeyPair.generate(), KeyPair.generate()
    assert first.public_line != second.public_line
    assert first.public_line.startswith("ssh-ed25519 ")
    assert first.private_text.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert "PRIVATE" not in repr(first)
