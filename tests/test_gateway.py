"""The gateway, used by ssh(1)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtunnel.gateway import Gateway
from tests.support.gateways import GatewayServer, Guest
from tests.support.other_servers import run
from tests.support.ports import free_port, listens, wait_listening
from tests.support.sshd import wait_until
from tests.support.tunnels import (
    Target,
    ask,
    background,
    echo,
    noise,
    read_all,
    read_end,
    read_exactly,
    reset,
    say,
    send_and_end,
    visit,
)

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    """One gateway for the tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("gateway")
    with GatewayServer(folder, allow_socket_dir=folder) as running:
        yield running


def cipher_of(gateway: Gateway) -> set[tuple[str, bool]]:
    return {
        (session.transport.local_cipher, session.transport.engine_status.active)
        for session in gateway._sessions
    }


def addresses_of(gateway: Gateway, port: int) -> set[str]:
    names = [
        sock.getsockname()
        for entrance in gateway._listeners._by_place.values()
        for sock in entrance.sockets
    ]
    return {name[0] for name in names if name[1] == port}


# Bytes. The ciphers decide whether the engine runs in the gateway.


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_bytes_arrive_unchanged_in_both_directions_at_once(
    server: GatewayServer, cipher: str
) -> None:
    data = noise(5 * MIB + 77)
    with server.serving(echo, "0", "-c", cipher) as ssh:
        with visit(ssh.port()) as sock, background(sock.sendall, data):
            assert read_exactly(sock, len(data)) == data
        wait_until(lambda: (cipher, "gcm" in cipher) in cipher_of(server.gateway))


def test_a_client_that_prefers_another_cipher_gets_aes_gcm_if_it_has_it(
    server: GatewayServer,
) -> None:
    ciphers = "chacha20-poly1305@openssh.com,aes128-ctr,aes256-gcm@openssh.com"
    with server.serving(say(b"hello"), "0", "-c", ciphers) as ssh:
        assert ask(ssh.port()) == b"hello"
        assert ("aes256-gcm@openssh.com", True) in cipher_of(server.gateway)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-ctr"])
def test_rekeys_of_the_client_in_mid_transfer_change_no_byte(
    server: GatewayServer, cipher: str
) -> None:
    data = noise(3 * MIB)
    options = ("-c", cipher, "-o", "RekeyLimit=64K")
    with (
        server.serving(echo, "0", *options) as ssh,
        visit(ssh.port()) as sock,
        background(sock.sendall, data),
    ):
        assert read_exactly(sock, len(data)) == data


def test_the_visitor_may_end_first_and_still_read(server: GatewayServer) -> None:
    def serve(conn: socket.socket) -> None:
        conn.sendall(b"%d bytes" % len(read_all(conn)))

    with server.serving(serve) as ssh, visit(ssh.port()) as sock:
        send_and_end(sock, b"x" * MIB)
        assert read_all(sock) == b"%d bytes" % MIB


def test_the_target_may_end_first_and_still_read(server: GatewayServer) -> None:
    got: list[int] = []

    def serve(conn: socket.socket) -> None:
        send_and_end(conn, b"." * MIB)
        got.append(len(read_all(conn)))

    with server.serving(serve) as ssh, visit(ssh.port()) as sock:
        assert read_all(sock) == b"." * MIB
        send_and_end(sock, b"x" * MIB)
        wait_until(lambda: got == [MIB])


def test_a_visitor_that_resets_ends_the_connection_to_the_target(
    server: GatewayServer,
) -> None:
    ended = threading.Event()

    def serve(conn: socket.socket) -> None:
        conn.sendall(b"hello")
        read_end(conn)
        ended.set()

    with server.serving(serve) as ssh:
        sock = visit(ssh.port())
        assert read_exactly(sock, 5) == b"hello"
        reset(sock)
        assert ended.wait(10.0)


def test_a_dead_target_closes_the_visitor(server: GatewayServer) -> None:
    with server.forward(free_port()) as ssh, visit(ssh.port()) as sock:
        assert read_end(sock) in (b"", None)


def test_fifty_visitors_at_once_each_get_their_own_bytes(
    server: GatewayServer,
) -> None:
    def one(number: int) -> bool:
        data = bytes([number]) * 40_000
        with visit(port) as sock, background(sock.sendall, data):
            return read_exactly(sock, len(data)) == data

    with server.serving(echo) as ssh:
        port = ssh.port()
        with ThreadPoolExecutor(50) as pool:
            assert all(pool.map(one, range(50)))


def test_two_clients_with_two_ports_do_not_mix(server: GatewayServer) -> None:
    one, two = b"one" * 50_000, b"two" * 50_000
    with server.serving(say(one)) as first, server.serving(say(two)) as second:
        ports = [first.port(), second.port()] * 10
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, ports))
        assert answers == [one, two] * 10


# Ports and paths.


def test_several_ports_of_one_client_are_all_there(server: GatewayServer) -> None:
    ports = [free_port() for _ in range(3)]
    with Target(say(b"one")) as one, Target(say(b"two")) as two:
        targets = [one.port, two.port, one.port]
        forwards = zip(ports, targets, strict=True)
        arguments = [f"-R{port}:127.0.0.1:{target}" for port, target in forwards]
        with server.ssh("-N", *arguments):
            for port in ports:
                wait_listening(port)
            assert [ask(port) for port in ports] == [b"one", b"two", b"one"]


@pytest.mark.parametrize("address", ["", "*", "0.0.0.0", "localhost", "[::1]"])
def test_every_address_is_loopback_of_both_families(
    server: GatewayServer, address: str
) -> None:
    with server.serving(say(b"hello"), f"{address}:0") as ssh:
        port = ssh.port()
        assert ask(port) == b"hello"
        with socket.create_connection(("::1", port), 10.0) as sock:
            assert read_all(sock) == b"hello"
        assert addresses_of(server.gateway, port) == {"127.0.0.1", "::1"}


def test_a_socket_path_in_the_folder_is_served_and_removed_at_the_end(
    server: GatewayServer,
) -> None:
    path = server.user_key.parent / "app.sock"
    with Target(echo) as target:
        with server.forward(target.port, str(path), "-v") as ssh:
            wait_until(lambda: "remote forward success" in ssh.said)
            assert path.stat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                send_and_end(sock, b"through a path")
                assert read_all(sock) == b"through a path"
        wait_until(lambda: not path.exists())


def test_a_socket_that_nobody_listens_on_is_replaced(server: GatewayServer) -> None:
    path = server.user_key.parent / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with server.serving(echo, str(path)) as ssh:
        wait_until(lambda: path.stat().st_mode & 0o777 == 0o600)
        assert ssh.process.poll() is None


@pytest.mark.parametrize("name", ["in_use.sock", "a_file"])
def test_a_path_that_is_in_use_is_refused_and_left_alone(
    server: GatewayServer, name: str
) -> None:
    path = server.user_key.parent / name
    with socket.socket(socket.AF_UNIX) as other:
        if name == "a_file":
            path.write_text("precious")
        else:
            other.bind(str(path))
            other.listen()
        with server.forward(1, str(path)) as ssh:
            assert ssh.status() == 255
        assert path.exists()


@pytest.mark.parametrize("path", ["/tmp/outside.sock", "{}/../x.sock", "{}/sub/x.sock"])
def test_a_path_outside_of_the_folder_is_refused(
    server: GatewayServer, path: str
) -> None:
    folder = server.user_key.parent
    (folder / "sub").mkdir(exist_ok=True)
    with server.forward(1, path.format(folder), "-v") as ssh:
        assert ssh.status() == 255
        assert f"socket paths are disabled outside of {folder}" in ssh.said


def test_a_port_in_use_is_refused(server: GatewayServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with server.forward(1, str(port), "-v") as ssh:
            assert ssh.status() == 255
            assert "Address already in use" in ssh.said


def test_half_a_port_is_not_taken(server: GatewayServer) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with server.forward(1, str(port)) as ssh:
            assert ssh.status() == 255
        assert not listens(port)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_the_port_is_free_when_its_client_has_gone(
    server: GatewayServer, signal_number: int
) -> None:
    with server.forward(1) as ssh:
        port = ssh.port()
        os.kill(ssh.process.pid, signal_number)
        wait_until(lambda: not listens(port))
    with server.forward(1, str(port)):
        wait_listening(port)


# Who may do what.


def refused(guest: Guest) -> str:
    with guest.forward(1) as ssh:
        assert ssh.status() == 255
        return ssh.said


def test_a_wrong_key_is_refused(server: GatewayServer, tmp_path: Path) -> None:
    stranger = Guest(tmp_path, "stranger").meet(server.gateway)
    assert "Permission denied (publickey)" in refused(stranger)


def test_a_shell_is_refused_with_advice(server: GatewayServer) -> None:
    with server.ssh() as ssh:
        assert ssh.status() == 255
        assert "administratively prohibited" in ssh.said
        assert "use ssh -N -R" in ssh.said


@pytest.mark.parametrize(
    "arguments", [("-o", "RemoteCommand=true"), ("-W", "127.0.0.1:22")]
)
def test_neither_commands_nor_connections_are_served(
    server: GatewayServer, arguments: tuple[str, ...]
) -> None:
    with server.ssh(*arguments) as ssh:
        assert ssh.status() == 255
        assert "administratively prohibited" in ssh.said


def test_keys_of_other_kinds_do_not_keep_the_right_one_from_being_tried(
    server: GatewayServer, tmp_path: Path
) -> None:
    authority = tmp_path / "authority"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", authority)
    other = Guest(tmp_path, "other")
    public = other.user_key.with_suffix(".pub")
    run("ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", "guest", public)
    certificate = tmp_path / "other_key-cert.pub"
    options = ("-v", "-o", f"CertificateFile={certificate}", "-i", str(other.user_key))
    with server.serving(say(b"hello"), "0", *options) as ssh:
        assert ask(ssh.port()) == b"hello"


RESTRICTED = [
    ('permitlisten="{port}"', True),
    ('permitlisten="localhost:{port}"', True),
    ('permitlisten="other:{port}"', False),
    ('permitlisten="localhost:*"', True),
    ('permitlisten="1",permitlisten="{port}"', True),
    ('permitlisten="1"', False),
    ("no-port-forwarding", False),
    ("restrict", False),
    ("restrict,port-forwarding", True),
    ('command="false",no-pty,permitlisten="{port}"', True),
]


@pytest.mark.parametrize(("options", "granted"), RESTRICTED)
def test_the_options_of_a_key_say_which_ports_it_may_have(
    tmp_path: Path, options: str, granted: bool
) -> None:
    port = free_port()
    with (
        GatewayServer(tmp_path, options.format(port=port)) as server,
        server.forward(1, str(port), "-v") as ssh,
    ):
        if granted:
            wait_listening(port)
        else:
            assert ssh.status() == 255
            assert "disabled for this key" in ssh.said
            assert not listens(port)


def test_a_key_with_an_option_that_is_not_understood_cannot_log_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with GatewayServer(tmp_path, "verify-required") as server:
        assert "the option 'verify-required' is not understood here" in caplog.text
        assert "Permission denied (publickey)" in refused(server)


def test_ports_outside_of_the_range_are_refused_and_port_0_stays_in_it(
    tmp_path: Path,
) -> None:
    port = free_port()
    with GatewayServer(tmp_path, allow_ports=range(port, port + 1)) as server:
        with server.forward(1, "2000", "-v") as ssh:
            assert ssh.status() == 255
            assert "port 2000 is disabled on this gateway" in ssh.said
        with server.forward(1) as ssh:
            assert ssh.port() == port


def test_ports_of_root_and_socket_paths_are_refused_unless_allowed(
    tmp_path: Path,
) -> None:
    with GatewayServer(tmp_path) as server:
        for bind in ("80", str(tmp_path / "x.sock")):
            with server.forward(1, bind, "-v") as ssh:
                assert ssh.status() == 255
                assert "disabled on this gateway" in ssh.said


# Taking a port over.


def test_a_client_that_is_back_takes_its_port_from_its_own_dead_connection(
    server: GatewayServer, caplog: pytest.LogCaptureFixture
) -> None:
    with server.serving(say(b"old")) as first:
        port = first.port()
        os.kill(first.process.pid, signal.SIGSTOP)  # it lost its network, say
        with server.serving(say(b"new"), str(port), "-v") as second:
            wait_until(lambda: "remote forward success" in second.said)
            assert "taken over" in caplog.text
            assert ask(port) == b"new"
    # Its ssh was killed: the gateway is told by the connection's end.
    wait_until(lambda: not listens(port))


def test_a_client_with_another_key_takes_nothing_over(tmp_path: Path) -> None:
    one, two = Guest(tmp_path, "one"), Guest(tmp_path, "two")
    with (
        Gateway(authorized_keys=[one.public, two.public]) as gateway,
        one.meet(gateway).serving(say(b"one")) as first,
        two.meet(gateway).forward(1, str(first.port()), "-v") as second,
    ):
        assert second.status() == 255
        assert f"{first.port()} is in use by another client" in second.said
        assert ask(first.port()) == b"one"


# One for all.


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_a_client_that_reads_nothing_holds_up_nobody(
    server: GatewayServer, cipher: str
) -> None:
    with contextlib.ExitStack() as stack:
        stuck = stack.enter_context(server.serving(echo, "0", "-c", cipher))
        free = stack.enter_context(server.serving(say(b"hello")))
        socks = [stack.enter_context(visit(stuck.port())) for _ in range(12)]
        for sock in socks:
            sock.sendall(b"1")
            assert read_exactly(sock, 1) == b"1"
        os.kill(stuck.process.pid, signal.SIGSTOP)
        # All windows of 2 MiB together are more than the kernel holds for one socket.
        with ThreadPoolExecutor(len(socks)) as pool:
            list(pool.map(fill, socks))
        late = [stack.enter_context(visit(stuck.port())) for _ in range(20)]
        assert ask(free.port()) == b"hello"
        assert len(late) == 20


def fill(sock: socket.socket) -> None:
    """Send until nothing moves any more: window and buffers are full."""
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.sendall(bytes(65536))
