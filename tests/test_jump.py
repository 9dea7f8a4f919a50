"""ProxyJump: through one server to another, each with its own keys and checks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.errors import (
    AuthenticationFailed,
    ConfigError,
    HostKeyUnknown,
    HostUnreachable,
)
from rtunnel.ssh.connect import open_transport
from rtunnel.ssh.options import ConnectOptions, Options
from rtunnel.ssh.transport import Transport
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sshd]]:
    """The destination and two servers on the way, with keys of their own."""
    folder = tmp_path_factory.mktemp("jump")
    with (
        Sshd(folder / "inner") as inner,
        Sshd(folder / "middle") as middle,
        Sshd(folder / "outer") as outer,
    ):
        yield [inner, middle, outer]


@pytest.fixture(autouse=True)
def nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: list[Sshd]
) -> Iterator[None]:
    """Whether a test connects or fails to: the servers see every connection end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    threads = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads)
    wait_until(lambda: not any(server.sessions() for server in servers))


@pytest.fixture
def config(tmp_path: Path, servers: list[Sshd]) -> Path:
    """An ssh_config in which the servers are inner, middle and outer."""
    path = tmp_path / "config"
    for name, server in zip(("inner", "middle", "outer"), servers, strict=True):
        with path.open("a") as file:
            file.write(
                f"Host {name}\n HostName 127.0.0.1\n Port {server.port}\n"
                f" User {server.user}\n IdentityFile {server.user_key}\n"
                f" UserKnownHostsFile {server.known_hosts}\n IdentitiesOnly yes\n"
            )
    path.chmod(0o600)
    return path


def output(transport: Transport, command: str) -> str:
    with transport.open_session() as channel:
        channel.exec_command(command)
        with channel.makefile() as file:
            return str(file.read().decode().strip())


def asks(server: Sshd) -> int:
    return server.log.read_text().count("Accepted publickey for")


@pytest.mark.parametrize("jump", ["middle", "outer,middle", "ssh://middle"])
def test_a_connection_goes_through_its_hops(config: Path, jump: str) -> None:
    transport = open_transport("inner", config_file=config, jump=jump)
    assert output(transport, "head -c 3000000 /dev/zero | wc -c") == "3000000"
    assert len(output(transport, "head -c 300000 /dev/zero | base64 -w 0")) == 400000
    assert transport.engine_status.active
    transport.close()


def test_proxy_jump_in_the_file_holds_for_hops_too(
    config: Path, servers: list[Sshd]
) -> None:
    with config.open("a") as file:
        file.write("Host inner\n ProxyJump middle\nHost middle\n ProxyJump outer\n")
    before = [asks(server) for server in servers]
    open_transport("inner", config_file=config).close()
    wait_until(
        lambda: [asks(server) for server in servers] == [count + 1 for count in before]
    )


def test_a_hop_may_be_written_out(config: Path, servers: list[Sshd]) -> None:
    _, middle, _ = servers
    config.write_text(
        config.read_text() + f"Host 127.0.0.1\n IdentityFile {middle.user_key}\n"
        f" UserKnownHostsFile {middle.known_hosts}\n"
    )
    hop = f"{middle.user}@127.0.0.1:{middle.port}"
    open_transport("inner", config_file=config, jump=hop).close()


def test_what_is_said_about_the_destination_does_not_hold_for_a_hop(
    config: Path, servers: list[Sshd]
) -> None:
    inner, _, _ = servers
    transport = open_transport(
        "inner",
        config_file=config,
        jump="middle",
        port=inner.port,
        user=inner.user,
        identity_files=[inner.user_key],
        ssh_options=[
            "HostKeyAlias=127.0.0.1",
            f"HostKeyAlias=[127.0.0.1]:{inner.port}",
        ],
        host_key_policy="no",
    )
    transport.close()


def test_a_hop_that_is_not_known_is_refused(
    config: Path, servers: list[Sshd], tmp_path: Path
) -> None:
    config.write_text(
        config.read_text().replace(str(servers[1].known_hosts), f"{tmp_path}/none")
    )
    with pytest.raises(HostKeyUnknown, match=f":{servers[1].port} is not known"):
        open_transport("inner", config_file=config, jump="middle")


def test_a_hop_that_does_not_let_us_in_is_named(
    config: Path, servers: list[Sshd]
) -> None:
    inner, middle, _ = servers
    config.write_text(
        config.read_text().replace(str(middle.user_key), str(inner.user_key))
    )
    with pytest.raises(AuthenticationFailed, match=f":{middle.port} did not let us in"):
        open_transport("inner", config_file=config, jump="middle")


def test_a_destination_that_fails_ends_its_hops(
    config: Path, servers: list[Sshd], tmp_path: Path
) -> None:
    config.write_text(
        config.read_text().replace(str(servers[0].known_hosts), f"{tmp_path}/none")
    )
    with pytest.raises(HostKeyUnknown, match=f":{servers[0].port} is not known"):
        open_transport("inner", config_file=config, jump="outer,middle")


def test_a_destination_that_the_hop_cannot_reach_reads_as_that(config: Path) -> None:
    port = free_port()
    with pytest.raises(
        HostUnreachable, match=f"could not connect to 127.0.0.1 port {port}: .*refused"
    ):
        open_transport("inner", config_file=config, jump="middle", port=port)


def test_a_hop_that_forbids_forwarding_reads_as_that(
    config: Path, tmp_path: Path
) -> None:
    with Sshd(tmp_path / "s", "AllowTcpForwarding no") as closed:
        with config.open("a") as file:
            file.write(
                f"Host closed\n HostName 127.0.0.1\n Port {closed.port}\n"
                f" IdentityFile {closed.user_key}\n"
                f" UserKnownHostsFile {closed.known_hosts}\n"
            )
        with pytest.raises(
            HostUnreachable, match=r"could not connect.*AllowTcpForwarding"
        ):
            open_transport("inner", config_file=config, jump="closed")
        wait_until(lambda: not closed.sessions())


def test_a_hop_that_dies_ends_what_goes_through_it(
    config: Path, servers: list[Sshd]
) -> None:
    transport = open_transport("inner", config_file=config, jump="middle")
    servers[1].kill_sessions()
    wait_until(lambda: not transport.is_active())
    transport.close()


@pytest.mark.parametrize(
    "lines",
    [
        "Host inner\n ProxyJump inner\n",
        "Host inner\n ProxyJump middle\nHost middle\n ProxyJump inner\n",
        "Host *\n ProxyJump outer\n",
    ],
)
def test_a_circle_of_hops_is_refused(config: Path, lines: str) -> None:
    with config.open("a") as file:
        file.write(lines)
    with pytest.raises(ConfigError, match=r"circle: .* -> .*ProxyJump none"):
        open_transport("inner", config_file=config)


def test_a_hop_with_a_proxy_command_is_reached_by_it(
    config: Path, servers: list[Sshd]
) -> None:
    with config.open("a") as file:
        file.write("Host middle\n ProxyCommand socat - TCP:%h:%p\n")
    open_transport("inner", config_file=config, jump="middle").close()


def test_a_socket_of_the_callers_is_not_used_for_hops(
    config: Path, servers: list[Sshd]
) -> None:
    sock = socket.create_connection(("127.0.0.1", servers[0].port))
    before = asks(servers[1])
    open_transport("inner", config_file=config, jump="middle", sock=sock).close()
    assert asks(servers[1]) == before


def test_a_hop_has_options_of_its_own(servers: list[Sshd]) -> None:
    inner, middle, outer = servers
    middle.authorized_keys.write_text(
        middle.authorized_keys.read_text()
        + outer.user_key.with_suffix(".pub").read_text()
    )
    # Each key opens its own server only, but for the middle one.
    options: ConnectOptions = {
        "config_file": "none",
        "identity_files": [inner.user_key],
        "known_hosts": [server.known_hosts for server in servers],
        "jump_options": {"identity_files": [outer.user_key], "user": outer.user},
    }
    hops = [f"127.0.0.1:{server.port}" for server in (outer, middle)]
    destination = f"127.0.0.1:{inner.port}"
    transport = open_transport(destination, jump=",".join(hops), **options)
    assert output(transport, "echo through") == "through"
    transport.close()


def test_the_secrets_of_a_hop_are_not_shown(servers: list[Sshd]) -> None:
    options = Options(jump_options={"password": "hunter2", "passphrase": "hunter2"})
    assert "hunter2" not in repr(options)
    hop = options.for_jump_host(None)
    assert (hop.password, hop.passphrase) == ("hunter2", "hunter2")
    assert "hunter2" not in repr(hop)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"pasword": "x"}, "did you mean password"),
        ({"jump": "elsewhere"}, "jump_options has no option 'jump'"),
        ({"sock": None}, "jump_options has no option 'sock'"),
    ],
)
def test_an_option_that_a_hop_cannot_have_is_refused(
    options: ConnectOptions, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint):
        open_transport("inner", jump="middle", jump_options=options)
