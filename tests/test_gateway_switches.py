"""What the gateway gives to nobody, until it is switched on: used by ssh(1)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from rtunnel.errors import ChannelOpenError
from rtunnel.gateway.settings import Rights
from tests.support.files import open_files
from tests.support.gateways import GatewayServer
from tests.support.other_servers import connect, run
from tests.support.ports import free_port, wait_listening
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    Target,
    ask,
    background,
    echo,
    noise,
    read_all,
    read_exactly,
    say,
    send_and_end,
    visit,
)

ALL = Rights(exec=True, shell=True, sftp=True, agent_forwarding=True)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    with GatewayServer(tmp_path_factory.mktemp("gateway"), rights=ALL) as running:
        yield running


def ssh(
    server: GatewayServer, *command: str, flags: tuple[str, ...] = (), data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run ssh with a command to the end."""
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(server.port), "-i", str(server.user_key)),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={server.known_hosts}"),
            *(*flags, f"{server.user}@127.0.0.1", *command),
        ],
        input=data,
        capture_output=True,
        timeout=60,
    )


# Commands and shells.


def test_a_command_has_its_output_its_errors_and_its_status(
    server: GatewayServer,
) -> None:
    done = ssh(server, "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


@pytest.mark.parametrize("backend", ["engine", "pump"])
def test_a_command_that_ends_at_once_is_answered_first(
    server: GatewayServer, backend: str
) -> None:
    with connect(server, backend) as tunnel:
        for _ in range(30):
            channel = tunnel.transport.open_session()
            channel.exec_command("exit 5")
            assert channel.recv_exit_status() == 5
            channel.close()


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_bytes_go_through_a_command_unchanged(
    server: GatewayServer, cipher: str
) -> None:
    data = noise(3 * MIB)
    done = ssh(server, "cat", flags=("-c", cipher), data=data)
    assert done.stdout == data
    assert done.returncode == 0


def test_a_command_begins_at_home_with_little_of_the_gateways_environment(
    server: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "1")
    monkeypatch.setenv("LC_TIME", "C")
    done = ssh(server, "pwd; env", flags=("-o", "SendEnv=LC_TIME"))
    home, *variables = done.stdout.decode().splitlines()
    assert os.path.realpath(home) == os.path.realpath(os.environ["HOME"])
    names = {line.partition("=")[0] for line in variables}
    assert {"HOME", "LC_TIME", "PATH", "USER"} <= names
    assert "SECRET_OF_THE_GATEWAY" not in names


def test_a_command_that_a_signal_ends_has_the_status_of_shells(
    server: GatewayServer,
) -> None:
    assert ssh(server, "kill -9 $$").returncode == 137


def test_a_terminal_is_one(server: GatewayServer) -> None:
    done = ssh(server, "test -t 0 && tty && echo $TERM", flags=("-tt",))
    assert b"/dev/pts/" in done.stdout
    assert done.returncode == 0


def test_a_shell_reads_what_is_typed(server: GatewayServer) -> None:
    done = ssh(server, flags=("-T",), data=b"echo 1$((1 + 1))3\nexit 3\n")
    assert b"123" in done.stdout
    assert done.returncode == 3


def test_a_process_ends_with_its_client(server: GatewayServer, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with server.ssh("-o", f"RemoteCommand=echo $$ > {pid_file}; exec sleep 60"):
        wait_until(lambda: pid_file.exists() and pid_file.read_text())
        pid = int(pid_file.read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_commands_leave_nothing_behind(server: GatewayServer) -> None:
    ssh(server, "true")
    wait_until(lambda: not server.gateway._sessions)
    before = open_files()
    for flags in ((), ("-tt",), ("-A",)):
        for _ in range(3):
            ssh(server, "true", flags=flags)
    wait_until(lambda: not server.gateway._sessions)
    wait_until(lambda: open_files() <= before)


def test_one_connection_has_so_many_sessions(server: GatewayServer) -> None:
    with connect(server) as tunnel:
        channels = [tunnel.transport.open_session() for _ in range(10)]
        with pytest.raises(paramiko.ChannelException, match="shortage"):
            tunnel.transport.open_session()
        for channel in channels:
            channel.close()
        wait_until(lambda: can_open(tunnel.transport))


def can_open(transport: paramiko.Transport) -> bool:
    with contextlib.suppress(paramiko.ChannelException):
        transport.open_session().close()
        return True
    return False


# SFTP.


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_files_go_both_ways_by_sftp(
    server: GatewayServer, tmp_path: Path, cipher: str
) -> None:
    (tmp_path / "here").write_bytes(noise(MIB))
    batch = tmp_path / "batch"
    there, back = tmp_path / "there", tmp_path / "back"
    batch.write_text(f"put {tmp_path / 'here'} {there}\nget {there} {back}\n")
    run(
        *("sftp", "-q", "-F", "none", "-P", str(server.port), "-c", cipher),
        *("-i", str(server.user_key), "-o", f"UserKnownHostsFile={server.known_hosts}"),
        *("-b", str(batch), f"{server.user}@127.0.0.1"),
    )
    assert back.read_bytes() == (tmp_path / "here").read_bytes()


# The agent.


def test_the_clients_agent_can_be_asked(server: GatewayServer, tmp_path: Path) -> None:
    sock = tmp_path / "agent.sock"
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(sock)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        environment = {**os.environ, "SSH_AUTH_SOCK": str(sock)}
        # 2: no agent; 1: an agent without keys.
        wait_until(lambda: subprocess.call(["ssh-add", "-l"], env=environment) == 1)
        subprocess.run(
            ["ssh-add", "-q", str(server.user_key)], env=environment, check=True
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSH_AUTH_SOCK", str(sock))
            done = ssh(server, "ssh-add -L", flags=("-A",))
            assert done.stdout.split()[1] == server.public.split()[1].encode()
            assert ssh(server, "ssh-add -L").returncode == 2
    finally:
        agent.terminate()
        agent.wait(20.0)


# Connections.


@contextlib.contextmanager
def opening_to(
    folder: Path, *permits: str, options: str = ""
) -> Iterator[GatewayServer]:
    rights = Rights(permit_open=permits, channels_max=3)
    with GatewayServer(folder, options, rights=rights) as running:
        yield running


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_a_client_connects_to_what_it_is_permitted(tmp_path: Path, cipher: str) -> None:
    data, local = noise(MIB), free_port()
    with (
        Target(echo) as target,
        opening_to(tmp_path, f"127.0.0.1:{target.port}") as server,
        server.ssh("-N", "-c", cipher, "-L", f"{local}:127.0.0.1:{target.port}"),
    ):
        wait_listening(local)
        with visit(local) as sock, background(sock.sendall, data):
            assert read_exactly(sock, len(data)) == data
        with visit(local) as sock:
            send_and_end(sock, b"half")
            assert read_all(sock) == b"half"


@pytest.mark.parametrize(
    ("permit", "options"),
    [
        ("127.0.0.2:*", ""),
        ("127.0.0.1:1", ""),
        ("*:*", "restrict"),
        ("*:*", 'permitopen="127.0.0.2:*"'),
    ],
)
def test_a_client_connects_to_nothing_else(
    tmp_path: Path, permit: str, options: str
) -> None:
    with (
        Target(say(b"secret")) as target,
        opening_to(tmp_path, permit, options=options) as server,
    ):
        done = ssh(server, flags=("-W", f"127.0.0.1:{target.port}"))
        assert done.stdout == b""
        assert b"is disabled for this user" in done.stderr
        assert target.accepted == 0


def test_a_target_that_does_not_answer_is_told(tmp_path: Path) -> None:
    port = free_port()
    with opening_to(tmp_path, "127.0.0.1:*") as server:
        done = ssh(server, flags=("-W", f"127.0.0.1:{port}"))
        assert b"Connection refused" in done.stderr


def test_connections_count_as_channels(tmp_path: Path) -> None:
    with (
        Target(echo) as target,
        opening_to(tmp_path, "127.0.0.1:*") as server,
        connect(server) as tunnel,
    ):
        port = tunnel.listen(0, target.spec).port
        socks = [tunnel.dial(target.spec) for _ in range(3)]
        assert ask(port) == b""
        with pytest.raises(ChannelOpenError, match="too many channels"):
            tunnel.dial(target.spec)
        for sock in socks:
            sock.close()
        wait_until(lambda: is_served(port))


def is_served(port: int) -> bool:
    with visit(port) as sock, contextlib.suppress(OSError):
        sock.sendall(b"1")
        return sock.recv(1) == b"1"
    return False


# Not switched on, or taken away by the key.


@pytest.mark.parametrize(
    ("rights", "options", "flags", "command"),
    [
        (Rights(exec=True), 'command="true"', (), "echo out"),
        (Rights(shell=True), "", (), "echo out"),
        (Rights(exec=True), "", ("-s",), "sftp"),
        (Rights(sftp=True), "", (), "echo out"),
    ],
)
def test_what_is_not_switched_on_is_refused(
    tmp_path: Path,
    rights: Rights,
    options: str,
    flags: tuple[str, ...],
    command: str,
) -> None:
    with GatewayServer(tmp_path, options, rights=rights) as server:
        done = ssh(server, command, flags=flags)
        assert done.stdout == b""
        assert done.returncode in (1, 255)


def test_keys_may_go_without_a_terminal_and_without_the_agent(tmp_path: Path) -> None:
    with GatewayServer(tmp_path, "restrict", rights=ALL) as server:
        done = ssh(
            server, "test -t 0 || echo none; echo $SSH_AUTH_SOCK", flags=("-tA",)
        )
        assert done.stdout == b"none\n\n"


def test_a_socket_of_the_gateway_is_never_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "there.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            opening_to(tmp_path, "*:*") as server,
            connect(server) as tunnel,
            pytest.raises(ChannelOpenError, match="opens no connections"),
        ):
            tunnel.dial(f"unix:{path}")
