"""Scenarios of OpenSSH's own regression tests that apply to remote forwards.

Each section names the script of openssh-portable's regress/ whose scenario it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel import Tunnel
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.errors import ConnectionLost
from tests.support.command import Command, open_arguments
from tests.support.other_servers import connect
from tests.support.ports import bound, free_port, wait_listening
from tests.support.ssh_client import SshClient
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    digest,
    echo,
    noise,
    read_all,
    read_end,
    read_exactly,
    say,
    send_and_end,
    visit,
)

MIB = 1024 * 1024
BACKENDS = ("engine", "pump", "python")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tunnel(sshd: Sshd, backend: str) -> Iterator[Tunnel]:
    with connect(sshd, backend) as opened:
        assert opened.backend == backend
        yield opened


# forwarding.sh


def test_a_chain_of_nine_forwards_carries_a_file_unchanged(
    sshd: Sshd, tunnel: Tunnel
) -> None:
    ours, local, remote = ([free_port() for _ in range(3)] for _ in range(3))
    data = noise(MIB)
    with Target(echo) as end:
        flags: list[str] = []
        after = [f"127.0.0.1:{port}" for port in ours[1:]] + [end.spec]
        for mine, near, far, spec in zip(ours, local, remote, after, strict=True):
            tunnel.listen(mine, f"127.0.0.1:{near}")
            flags += ["-L", f"{near}:127.0.0.1:{far}", "-R", f"{far}:{spec}"]
        with (
            SshClient(sshd, *flags, ports=(*local, *remote)),
            visit(ours[0]) as sock,
            background(send_and_end, sock, data),
        ):
            assert digest(read_all(sock)) == digest(data)
        assert end.accepted == 1


def test_a_chain_of_unix_sockets_carries_a_file_unchanged(
    sshd: Sshd, tunnel: Tunnel, tmp_path: Path
) -> None:
    first, second, third, last = (str(tmp_path / name) for name in "abcd")
    data = noise(MIB)
    with Target(say(data)) as end:
        tunnel.listen(last, end.spec)
        with SshClient(sshd, "-L", f"{second}:{third}", "-R", f"{third}:{last}"):
            wait_until(lambda: Path(second).exists() and Path(third).exists())
            tunnel.listen(first, f"unix:{second}")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.connect(first)
                assert digest(read_all(sock)) == digest(data)


def test_a_path_over_there_and_a_port_here_may_be_mixed(
    sshd: Sshd, tunnel: Tunnel, tmp_path: Path
) -> None:
    path = str(tmp_path / "here.sock")
    with Target(say(b"port to path to port")) as end:
        tunnel.listen(path, end.spec)
        listener = tunnel.listen(PORT_0, f"unix:{path}")
        assert ask(listener.port) == b"port to path to port"


def test_one_duplicate_among_several_forwards_leaves_none_of_them(sshd: Sshd) -> None:
    ports = [free_port() for _ in range(4)]
    flags: list[str] = []
    for port in (*ports, ports[1]):
        flags += ["-R", f"{port}:127.0.0.1:1"]
    with Command(*open_arguments(sshd, *flags, f"{sshd.user}@127.0.0.1")) as command:
        assert command.status() == ExitStatus.FORWARD_REFUSED
        assert str(ports[1]) in command.errors()
    wait_until(lambda: not any(bound(port) for port in ports))


def test_forwards_of_the_file_are_left_to_ssh(sshd: Sshd, tmp_path: Path) -> None:
    of_the_file, given = free_port(), free_port()
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host chain\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {sshd.user_key}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {sshd.known_hosts}\n"
        f"  RemoteForward {of_the_file} 127.0.0.1:1\n"
        f"  LocalForward {of_the_file} 127.0.0.1:1\n"
    )
    with Target(say(b"given")) as target:
        flags = ["-F", str(config), "-R", f"{given}:{target.spec}"]
        with Command("open", *flags, "chain") as command:
            assert command.port() == given
            assert ask(given) == b"given"
            assert not bound(of_the_file)


@pytest.mark.parametrize("setting", ["no", "yes", "clientspecified"])
def test_every_way_to_name_an_address_is_matched_to_its_forward(
    tmp_path: Path, setting: str
) -> None:
    # What sshd binds, and what it says in the open, depends on GatewayPorts.
    with (
        Sshd(tmp_path, f"GatewayPorts {setting}") as sshd,
        connect(sshd) as tunnel,
    ):
        for address in ("", "*", "localhost", "127.0.0.1", "0.0.0.0"):
            name = address.encode() or b"any"
            listener = tunnel.listen((address, free_port()), say(name))
            assert ask(listener.port) == name
            listener.close()
            assert not bound(listener.port)


# multiplex.sh


def test_a_cancelled_forward_no_longer_listens_anywhere(tunnel: Tunnel) -> None:
    with Target(echo) as target:
        listeners = [tunnel.listen(free_port(), target.spec) for _ in range(4)]
        for number, listener in enumerate(listeners, 1):
            assert bound(listener.port)
            listener.close()
            assert not bound(listener.port)
            assert all(bound(other.port) for other in listeners[number:])


def test_a_cancelled_path_can_be_used_again(tunnel: Tunnel, tmp_path: Path) -> None:
    path = str(tmp_path / "remote.sock")
    for round_number in range(3):
        text = b"round %d" % round_number
        with (
            Target(say(text)) as target,
            tunnel.listen(path, target.spec),
            socket.socket(socket.AF_UNIX) as sock,
        ):
            sock.settimeout(TIMEOUT_S)
            sock.connect(path)
            assert read_all(sock) == text


# transfer.sh


def test_files_of_every_size_arrive_unchanged(tunnel: Tunnel) -> None:
    around = [size + more for size in (32768, 65536, 2 * MIB) for more in (-1, 0, 1)]
    with Target(echo) as target:
        port = tunnel.listen(PORT_0, target.spec).port
        for size in (1, 10, 100, 1000, 10_000, 100_000, 256 * 1024, *around):
            data = noise(size)
            with visit(port) as sock, background(send_and_end, sock, data):
                assert digest(read_all(sock)) == digest(data), size


# yes-head.sh, broken-pipe.sh


def test_a_visitor_that_has_read_enough_stops_the_target(tunnel: Tunnel) -> None:
    stopped = threading.Event()

    def flood(conn: socket.socket) -> None:
        try:
            while True:
                conn.sendall(b"y\n" * 10_000)
        except OSError:
            stopped.set()

    with Target(flood) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        for _ in range(3):
            stopped.clear()
            with visit(listener.port) as sock:
                assert read_exactly(sock, 2000) == b"y\n" * 1000
            assert stopped.wait(TIMEOUT_S)
        wait_until(lambda: listener.stats().connections_open == 0)


def test_a_target_that_has_read_enough_stops_the_visitor(tunnel: Tunnel) -> None:
    def head(conn: socket.socket) -> None:
        read_exactly(conn, 2000)

    with Target(head) as target:
        listener = tunnel.listen(PORT_0, target.spec)
        for _ in range(3):
            # sendall would end at a time limit if nobody told it to stop.
            with (
                visit(listener.port) as sock,
                pytest.raises((ConnectionResetError, BrokenPipeError)),
            ):
                sock.sendall(b"y\n" * 32 * MIB)
        wait_until(lambda: listener.stats().connections_open == 0)


# rekey.sh


@pytest.mark.parametrize("who", ["server", "client"])
@pytest.mark.parametrize(
    ("cipher", "backend"),
    [
        ("aes128-gcm@openssh.com", "engine"),
        ("aes256-gcm@openssh.com", "engine"),
        ("aes128-ctr", "pump"),
        ("aes256-ctr", "pump"),
        ("aes128-gcm@openssh.com", "pump"),
        ("aes128-gcm@openssh.com", "python"),
        ("aes256-ctr", "python"),
    ],
)
def test_many_rekeys_in_mid_transfer_change_no_byte(
    tmp_path: Path, cipher: str, backend: str, who: str
) -> None:
    data = noise(MIB)
    options = ["RekeyLimit 64K"] if who == "server" else []
    rekey_bytes = 64 * 1024 if who == "client" else None
    with (
        Sshd(tmp_path, *options, "LogLevel DEBUG1") as sshd,
        connect(sshd, backend, ciphers=cipher, rekey_bytes=rekey_bytes) as tunnel,
        Target(echo) as target,
    ):
        assert tunnel.transport.local_cipher == cipher
        port = tunnel.listen(PORT_0, target.spec).port
        # How many there are in one transfer depends on how much is under way when
        # keys are due: that still goes out under the old ones.
        for _ in range(20):
            with visit(port) as sock, background(send_and_end, sock, data):
                assert digest(read_all(sock)) == digest(data)
            if sshd.log.read_text().count("SSH2_MSG_NEWKEYS received") > 4:
                return
        pytest.fail("keys were not renewed")


# reconfigure.sh, and the ends of a connection


def test_a_server_that_is_reconfigured_keeps_its_tunnels(
    tmp_path: Path, backend: str
) -> None:
    with (
        Sshd(tmp_path) as sshd,
        connect(sshd, backend) as tunnel,
        Target(echo) as target,
    ):
        listener = tunnel.listen(PORT_0, target.spec)
        with visit(listener.port) as sock:
            assert sshd.process is not None
            os.kill(sshd.process.pid, signal.SIGHUP)
            wait_until(lambda: "SIGHUP" in sshd.log.read_text())
            wait_listening(sshd.port)
            send_and_end(sock, b"still here")
            assert read_all(sock) == b"still here"
        with connect(sshd, backend) as another:
            assert ask(another.listen(PORT_0, target.spec).port) == b""


def test_the_server_s_keepalives_are_answered(tmp_path: Path) -> None:
    options = ("ClientAliveInterval 1", "ClientAliveCountMax 1", "LogLevel DEBUG1")
    with (
        Sshd(tmp_path, *options) as sshd,
        contextlib.ExitStack() as stack,
        Target(say(b"alive")) as target,
    ):
        tunnels = [stack.enter_context(connect(sshd, name)) for name in BACKENDS]
        ports = [tunnel.listen(PORT_0, target.spec).port for tunnel in tunnels]
        # With a count of 1, a question that is not answered is the last one.
        asked = 2 * len(tunnels)
        wait_until(lambda: sshd.log.read_text().count("for keepalive") >= asked)
        assert [ask(port) for port in ports] == [b"alive"] * len(ports)


def test_a_server_that_is_killed_in_mid_transfer_is_a_lost_connection(
    tmp_path: Path, backend: str
) -> None:
    ended: list[bytes | None] = []

    def drain(conn: socket.socket) -> None:
        ended.append(b"" if read_end(conn) is not None else None)

    with (
        Sshd(tmp_path) as sshd,
        Target(drain) as target,
        connect(sshd, backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, target.spec)
        with visit(listener.port) as sock, contextlib.suppress(OSError):
            while True:
                sock.sendall(b"x" * 65536)
                if listener.stats().bytes_in > MIB:
                    sshd.kill_sessions()
        with pytest.raises(ConnectionLost):
            tunnel.wait(TIMEOUT_S)
        wait_until(lambda: ended == [None])  # a reset, not an end of stream


def test_a_server_that_hangs_is_given_up_by_keepalive(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Sshd(tmp_path) as sshd,
        Target(echo) as target,
        connect(
            sshd, backend, keepalive_interval_s=0.2, keepalive_count_max=2
        ) as tunnel,
    ):
        port = tunnel.listen(PORT_0, target.spec).port
        assert ask(port) == b""
        sshd.freeze_sessions()
        with pytest.raises(ConnectionLost, match="has not answered"):
            tunnel.wait(TIMEOUT_S)
    assert caplog.text.count("has not answered") == 1  # one line, and no traceback


# channel-timeout.sh, connection-timeout.sh


def test_an_idle_visitor_is_closed_where_the_server_says_so(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path, "ChannelTimeout forwarded-tcpip=1") as sshd,
        connect(sshd) as tunnel,
        Target(echo) as target,
    ):
        listener = tunnel.listen(PORT_0, target.spec)
        with visit(listener.port) as sock:
            assert read_end(sock) in (b"", None)
        with visit(listener.port) as sock:
            send_and_end(sock, b"busy")
            assert read_all(sock) == b"busy"
        wait_until(lambda: listener.stats().connections_open == 0)


def test_an_unused_connection_is_closed_where_the_server_says_so(
    tmp_path: Path, backend: str
) -> None:
    with (
        Sshd(tmp_path, "UnusedConnectionTimeout 1") as sshd,
        connect(sshd, backend) as tunnel,
    ):
        listener = tunnel.listen(PORT_0, echo)
        with pytest.raises(ConnectionLost, match="UnusedConnectionTimeout"):
            tunnel.wait(TIMEOUT_S)
        wait_until(lambda: not bound(listener.port))


def test_a_connection_that_was_in_use_is_not_called_unused(
    sshd: Sshd, tunnel: Tunnel
) -> None:
    with visit(tunnel.listen(PORT_0, echo).port) as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        sshd.kill_sessions()
        with pytest.raises(ConnectionLost) as failure:
            tunnel.wait(TIMEOUT_S)
        assert "UnusedConnectionTimeout" not in str(failure.value)
