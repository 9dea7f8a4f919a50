"""Connecting: what is agreed, and how every failure reads and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectError,
    HostKeyChanged,
    HostKeyRevoked,
    HostKeyUnknown,
    HostUnreachable,
)
from rtunnel.ssh.algorithms import choose
from rtunnel.ssh.connect import open_transport
from rtunnel.ssh.options import ConnectOptions, Options
from rtunnel.ssh.transport import Transport
from tests.support.files import open_files
from tests.support.ports import free_port
from tests.support.processes import children
from tests.support.sshd import Sshd, wait_until


@pytest.fixture(autouse=True)
def nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sshd: Sshd
) -> Iterator[None]:
    """Whether a test connects or fails to: threads, files and processes end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    threads, files, processes = set(threading.enumerate()), open_files(), children()
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads)
    wait_until(lambda: open_files() <= files)
    assert children() == processes


def arguments(server: Sshd, **options: object) -> dict[str, object]:
    return {
        "config_file": "none",
        "known_hosts": server.known_hosts,
        "identity_files": [server.user_key],
        **options,
    }


def connect(server: Sshd, **options: object) -> Transport:
    destination = f"{server.user}@127.0.0.1:{server.port}"
    return open_transport(destination, **arguments(server, **options))


def output(transport: Transport, command: str = "echo it runs") -> str:
    with transport.open_session() as channel:
        channel.exec_command(command)
        with channel.makefile() as file:
            return str(file.read().decode().strip())


def host_key_line(server: Sshd) -> str:
    return server.host_key.with_suffix(".pub").read_text().strip()


def test_a_connection_runs_on_aes_gcm_without_delay(sshd: Sshd) -> None:
    transport = connect(sshd)
    assert output(transport) == "it runs"
    assert transport.local_cipher == "aes128-gcm@openssh.com"
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert transport.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    transport.close()


def test_an_alias_in_a_file_says_everything(sshd: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host web\n HostName 127.0.0.1\n Port {sshd.port}\n User {sshd.user}\n"
        f" IdentityFile {sshd.user_key}\n UserKnownHostsFile {sshd.known_hosts}\n"
        " StrictHostKeyChecking yes\n Ciphers aes256-gcm@openssh.com\n"
    )
    transport = open_transport("web", config_file=config)
    assert transport.remote_cipher == "aes256-gcm@openssh.com"
    transport.close()


def test_a_url_is_a_destination(sshd: Sshd) -> None:
    url = f"ssh://{sshd.user}@127.0.0.1:{sshd.port}"
    open_transport(url, **arguments(sshd)).close()


def test_a_connected_socket_may_be_given(sshd: Sshd) -> None:
    sock = socket.create_connection(("127.0.0.1", sshd.port))
    transport = connect(sshd, sock=sock)
    assert transport.sock is sock
    transport.close()


def test_a_socket_that_was_given_is_closed_on_failure(sshd: Sshd) -> None:
    for destination, error in (("web:22:22", ValueError), ("web", HostKeyUnknown)):
        sock = socket.create_connection(("127.0.0.1", sshd.port))
        with pytest.raises(error):
            open_transport(destination, **arguments(sshd, sock=sock))
        assert sock.fileno() == -1


# Host keys.


def test_an_unknown_host_is_refused_before_any_login(
    sshd: Sshd, tmp_path: Path
) -> None:
    with pytest.raises(HostKeyUnknown, match=f"ssh-keyscan -t ed25519 -p {sshd.port}"):
        connect(sshd, known_hosts=tmp_path / "none")


def test_the_advice_for_an_unknown_host_makes_it_known(
    sshd: Sshd, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    with pytest.raises(HostKeyUnknown) as caught:
        connect(sshd, known_hosts=known)
    command = str(caught.value).rpartition("add it: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    connect(sshd, known_hosts=known).close()


def test_nobody_is_asked_about_a_host_key_in_batch_mode(
    sshd: Sshd, tmp_path: Path
) -> None:
    options = {"known_hosts": tmp_path / "known", "host_key_prompt": lambda _: True}
    with pytest.raises(HostKeyUnknown):
        connect(sshd, ssh_options=["BatchMode=yes"], **options)
    connect(sshd, **options).close()


def test_a_changed_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    other = sshd.user_key.with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{sshd.port} {other}")
    with pytest.raises(HostKeyChanged, match=f"{known} line 1"):
        connect(sshd, known_hosts=known)


def test_a_revoked_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(
        f"@revoked * {host_key_line(sshd)}\n" + sshd.known_hosts.read_text()
    )
    with pytest.raises(HostKeyRevoked, match=f"{known} line 1"):
        connect(sshd, known_hosts=known)


def test_accept_new_connects_and_remembers(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "sub" / "known"
    connect(sshd, known_hosts=known, host_key_policy="accept-new").close()
    connect(sshd, known_hosts=known, host_key_policy="yes").close()


@pytest.mark.parametrize("known_kind", ["ed25519", "ecdsa", "rsa"])
def test_a_server_with_several_keys_shows_the_one_that_is_known(
    tmp_path: Path, known_kind: str
) -> None:
    keys = {kind: tmp_path / f"host_{kind}" for kind in ("ecdsa", "rsa")}
    for kind, path in keys.items():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True
        )
    with Sshd(tmp_path / "s", *(f"HostKey {path}" for path in keys.values())) as server:
        path = keys.get(known_kind, server.host_key)
        line = Path(f"{path}.pub").read_text()
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {line}")
        connect(server).close()


def test_a_host_certificate_is_verified(tmp_path: Path) -> None:
    authority = tmp_path / "authority"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(authority)],
        check=True,
    )
    with Sshd(tmp_path / "s", f"HostCertificate {tmp_path}/s/host_key-cert.pub") as one:
        for name, known in (("127.0.0.1", True), ("db", False)):
            subprocess.run(
                ["ssh-keygen", "-q", "-s", str(authority), "-I", "host", "-h", "-n",
                 name, f"{one.host_key}.pub"], check=True, capture_output=True,
            )  # fmt: skip
            one.stop()
            one.start()
            line = Path(f"{authority}.pub").read_text()
            one.known_hosts.write_text(f"@cert-authority * {line}")
            if known:
                connect(one).close()
            else:
                with pytest.raises(HostKeyUnknown):
                    connect(one)


# Failures.


def test_a_closed_port_reads_as_refused() -> None:
    port = free_port()
    says = f"could not connect to 127.0.0.1 port {port}: Connection refused: is sshd"
    with pytest.raises(HostUnreachable, match=says):
        open_transport(f"127.0.0.1:{port}", config_file="none")


def test_a_name_without_address_reads_as_that() -> None:
    with pytest.raises(HostUnreachable, match=r"cannot find the address of 'no\.host"):
        open_transport("no.host.invalid", config_file="none")


def test_an_address_that_is_not_ours_cannot_be_bound(sshd: Sshd) -> None:
    with pytest.raises(ConfigError, match=r"BindAddress 192\.0\.2\.1"):
        connect(sshd, ssh_options=["BindAddress=192.0.2.1"])
    connect(sshd, ssh_options=["BindAddress=127.0.0.1"]).close()


def test_a_host_that_does_not_answer_reads_as_timed_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)),  # the queue is full now
            pytest.raises(HostUnreachable, match=r"no answer within 0\.3 s"),
        ):
            open_transport(
                f"127.0.0.1:{port}", config_file="none", connect_timeout_s=0.3
            )


def test_a_server_that_says_nothing_reads_as_stuck() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(HostUnreachable, match="did not finish the key exchange"):
            open_transport(
                f"127.0.0.1:{port}", config_file="none", connect_timeout_s=0.3
            )


@pytest.mark.parametrize("greeting", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b""])
def test_a_server_of_another_kind_reads_as_that(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(100)
                sock.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HostUnreachable, match="not as an SSH server"):
            open_transport(f"127.0.0.1:{listener.getsockname()[1]}", config_file="none")
        thread.join()


def test_no_common_cipher_reads_as_that(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path / "s", "Ciphers chacha20-poly1305@openssh.com") as server,
        pytest.raises(ConnectError, match=r"no algorithm in common.*Ciphers"),
    ):
        connect(server)


def test_a_failed_login_leaves_nothing_behind(sshd: Sshd) -> None:
    with pytest.raises(AuthenticationFailed):
        connect(sshd, identity_files=[])


def test_an_option_that_connect_has_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no option 'known_host'.*known_hosts"):
        open_transport("web", known_host="x")


# What is agreed.


def test_compression_is_agreed_where_it_is_wanted(sshd: Sshd) -> None:
    transport = connect(sshd, compression=True)
    assert transport.remote_compression.startswith("zlib")
    assert output(transport) == "it runs"
    transport.close()


def test_ciphers_and_the_rest_follow_the_lists_of_ssh(sshd: Sshd) -> None:
    options = {
        "Ciphers": "chacha20-poly1305@openssh.com,aes256-ctr",
        "MACs": "hmac-sha2-512",
        "KexAlgorithms": "ecdh-sha2-nistp256",
    }
    transport = connect(sshd, ssh_options=options)
    assert (transport.local_cipher, transport.local_mac) == (
        "aes256-ctr",
        "hmac-sha2-512",
    )
    transport.close()


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (None, ("a", "b1", "b2")),
        ("b2,a", ("b2", "a")),
        ("b2,foreign,a", ("b2", "a")),
        ("+c", ("a", "b1", "b2", "c")),
        ("+a", ("a", "b1", "b2")),
        ("-b*", ("a",)),
        ("^b2", ("b2", "a", "b1")),
    ],
)
def test_a_list_adds_removes_or_moves_to_the_front(
    text: str | None, chosen: tuple[str, ...]
) -> None:
    known = ("a", "b1", "b2", "c")
    foreign = frozenset({"foreign"})
    assert choose("Ciphers", text, known[:3], known, foreign) == chosen


@pytest.mark.parametrize(
    ("text", "says"), [("aes", "did you mean aes1"), ("foreign", "none is left"),
                       ("-*", "none is left")],
)  # fmt: skip
def test_a_list_with_a_mistake_or_nothing_left_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose("Ciphers", text, ["aes1"], ["aes1"], frozenset({"foreign"}))


# ProxyCommand.


def test_a_proxy_command_carries_the_connection_and_ends_with_it(sshd: Sshd) -> None:
    transport = connect(sshd, proxy_command=f"socat - TCP:%h:{sshd.port}")
    assert output(transport) == "it runs"
    (pid,) = [pid for pid in children() if b"socat" in command_line(pid)]
    transport.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""  # it ended


def test_ssh_w_is_a_proxy_command(sshd: Sshd) -> None:
    words = sshd.ssh_command("-W", f"127.0.0.1:{sshd.port}")
    transport = connect(sshd, proxy_command=" ".join(words))
    assert output(transport, "head -c 1000000 /dev/zero | wc -c") == "1000000"
    assert transport.engine_status.active
    transport.close()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sh -c 'exit 7'", "ended with status 7"),
        ("no-such-command-here", "ended with status 127"),
        ("kill -9 $$", "ended with signal 9"),
    ],
)
def test_a_proxy_command_that_fails_is_named(
    sshd: Sshd, command: str, says: str
) -> None:
    with pytest.raises(HostUnreachable, match=says):
        connect(sshd, proxy_command=command)


def test_a_proxy_command_that_hangs_is_ended(sshd: Sshd) -> None:
    with pytest.raises(HostUnreachable, match="did not finish the key exchange"):
        connect(sshd, proxy_command="sleep 60", connect_timeout_s=0.3)
    wait_until(lambda: not any(b"sleep" in command_line(pid) for pid in children()))


def test_the_types_of_the_arguments_are_those_of_the_options() -> None:
    assert ConnectOptions.__annotations__.keys() == {
        field.name for field in dataclasses.fields(Options)
    }
