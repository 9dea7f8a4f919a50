"""paramiko's documented API on `rtunnel.Transport`: the client's side, engine on.

docs/paramiko-api.md is the table; the server's side is in test_paramiko_server.py,
SFTP and exec in test_sftp_and_exec.py.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import queue
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

import rtunnel
from rtunnel import Tunnel
from tests.support.pair import PASSWORD, connected_pair, stranger_pair
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    echo,
    noise,
    read_all,
    read_exactly,
    visit,
)

DOCS = Path(__file__).parent.parent / "docs"

# What the documentation of paramiko.Transport has ever listed.
NAMES = [
    "__init__", "__repr__", "accept", "add_server_key", "atfork", "auth_interactive",
    "auth_none", "auth_password", "auth_publickey", "cancel_port_forward", "close",
    "connect", "get_exception", "get_hexdump", "get_log_channel",
    "get_remote_server_key", "get_security_options", "get_server_key", "get_username",
    "getpeername", "global_request", "is_active", "is_authenticated",
    "load_server_moduli", "open_channel", "open_forwarded_tcpip_channel",
    "open_session", "open_sftp_client", "open_x11_channel", "renegotiate_keys",
    "request_port_forward", "run", "send_ignore", "set_hexdump", "set_keepalive",
    "set_log_channel", "set_subsystem_handler", "start_client", "start_server",
    "stop_thread", "use_compression",
]  # fmt: skip


@contextlib.contextmanager
def dialled(sshd: Sshd, **options: Any) -> Iterator[rtunnel.Transport]:
    """Yield a transport to sshd that was not started."""
    options.setdefault("backend", "engine")
    transport = rtunnel.Transport(("127.0.0.1", sshd.port), **options)
    try:
        yield transport
    finally:
        transport.close()
        transport.sock.close()


@contextlib.contextmanager
def connected(sshd: Sshd, **options: Any) -> Iterator[rtunnel.Transport]:
    """Yield a transport that is logged in to sshd, with the engine running."""
    with dialled(sshd, **options) as transport:
        transport.connect(username=sshd.user, pkey=user_key(sshd))
        assert transport.engine_status.active
        yield transport


def user_key(sshd: Sshd) -> paramiko.PKey:
    return paramiko.Ed25519Key.from_private_key_file(str(sshd.user_key))


def run(transport: paramiko.Transport, command: str) -> tuple[bytes, int]:
    """Run a command to its end; return its output and exit status."""
    channel = transport.open_session()
    channel.settimeout(TIMEOUT_S)
    channel.exec_command(command)
    output = read_all(channel)
    return output, channel.recv_exit_status()


# The names.


def test_every_documented_name_is_there() -> None:
    missing = [
        name for name in NAMES if not callable(getattr(rtunnel.Transport, name, None))
    ]
    assert missing == []


def test_the_table_in_the_docs_has_a_row_for_every_name() -> None:
    text = (DOCS / "paramiko-api.md").read_text()
    rows = re.findall(r"^\| `(\w+)", text, re.MULTILINE)
    assert sorted(set(rows) & set(NAMES)) == sorted(NAMES)
    assert len(rows) == len(set(rows))


# Connecting and logging in.


def test_connect_verifies_the_host_key_and_logs_in(sshd: Sshd) -> None:
    host_key = paramiko.Ed25519Key.from_private_key_file(str(sshd.host_key))
    with dialled(sshd) as transport:
        assert not transport.is_active()
        transport.connect(host_key, sshd.user, pkey=user_key(sshd))
        assert transport.engine_status.active
        assert transport.is_active()
        assert transport.is_authenticated()
        assert transport.get_username() == sshd.user
        assert transport.getpeername() == ("127.0.0.1", sshd.port)
        assert transport.get_remote_server_key() == host_key
        assert transport.get_exception() is None
        assert "aes128-gcm@openssh.com" in repr(transport)


def test_connect_refuses_another_host_key(sshd: Sshd) -> None:
    other = paramiko.ECDSAKey.generate()
    with dialled(sshd) as transport, pytest.raises(paramiko.SSHException):
        transport.connect(other, sshd.user, pkey=user_key(sshd))


def test_start_client_waits_or_sets_an_event(sshd: Sshd) -> None:
    with dialled(sshd) as transport:
        transport.start_client(timeout=TIMEOUT_S)
        assert transport.engine_status.active
    with dialled(sshd) as transport:
        event = threading.Event()
        transport.start_client(event)
        assert event.wait(TIMEOUT_S)
        transport.auth_publickey(sshd.user, user_key(sshd))
        assert transport.is_authenticated()


def test_authentication_that_is_refused_says_what_is_allowed(sshd: Sshd) -> None:
    with dialled(sshd) as transport:
        transport.start_client()
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            transport.auth_none(sshd.user)
        assert "publickey" in caught.value.allowed_types
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey(sshd.user, paramiko.ECDSAKey.generate())
        assert not transport.is_authenticated()
        transport.auth_publickey(sshd.user, user_key(sshd))
        assert transport.is_authenticated()


def test_security_options_choose_the_cipher(sshd: Sshd) -> None:
    with dialled(sshd) as transport:
        transport.get_security_options().ciphers = ("aes256-gcm@openssh.com",)
        transport.connect(username=sshd.user, pkey=user_key(sshd))
        assert transport.local_cipher == "aes256-gcm@openssh.com"
        assert transport.engine_status.active
    with dialled(sshd, backend="auto") as transport:
        transport.get_security_options().ciphers = ("aes128-ctr",)
        transport.connect(username=sshd.user, pkey=user_key(sshd))
        assert not transport.engine_status.active
        assert "aes128-ctr" in transport.engine_status.reason
        assert run(transport, "echo hello") == (b"hello\n", 0)


def test_compression_is_left_to_the_portable_backend(
    sshd: Sshd, tmp_path: Path
) -> None:
    with dialled(sshd, backend="auto") as transport:
        transport.use_compression()
        transport.connect(username=sshd.user, pkey=user_key(sshd))
        assert transport.engine_status.active is False
        assert "compression" in transport.engine_status.reason
        content = noise(300_000) + bytes(300_000)
        with transport.open_sftp_client() as sftp:
            (tmp_path / "content").write_bytes(content)
            with sftp.open(str(tmp_path / "content")) as file:
                assert file.read() == content
        transport.renegotiate_keys()
        tunnel = Tunnel(transport)
        assert tunnel.backend != "engine"
        with Target(echo) as target:
            listener = tunnel.listen(PORT_0, to=target.spec)
            with visit(listener.port) as sock:
                sock.sendall(content)
                assert read_exactly(sock, len(content)) == content


def test_compression_is_turned_off_again(sshd: Sshd) -> None:
    with dialled(sshd) as transport:
        transport.use_compression()
        transport.use_compression(False)
        transport.connect(username=sshd.user, pkey=user_key(sshd))
        assert transport.engine_status.active


# Channels and requests.


def test_a_session_runs_a_shell_on_a_terminal(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        channel = transport.open_session()
        channel.settimeout(TIMEOUT_S)
        channel.get_pty("vt100", 99, 33)
        channel.invoke_shell()
        channel.resize_pty(98, 32)
        channel.sendall(b"stty size; exit 5\n")
        assert b"32 98" in read_all(channel)
        assert channel.recv_exit_status() == 5


def test_a_direct_channel_reaches_what_the_server_reaches(sshd: Sshd) -> None:
    with connected(sshd) as transport, Target(echo) as target:
        channel = transport.open_channel(
            "direct-tcpip", ("127.0.0.1", target.port), ("127.0.0.1", 1)
        )
        channel.settimeout(TIMEOUT_S)
        channel.sendall(b"there and back")
        channel.shutdown_write()
        assert read_all(channel) == b"there and back"


def test_a_channel_that_the_server_refuses_is_an_error(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("parcel@example.com")
        assert transport.get_exception() is None
        assert transport.is_active()


def test_an_agent_is_forwarded(tmp_path: Path) -> None:
    asked: queue.Queue[bytes] = queue.Queue()

    def empty_agent(channel: paramiko.Channel) -> None:
        def serve() -> None:
            asked.put(read_exactly(channel, 5))
            # SSH_AGENT_IDENTITIES_ANSWER with no keys.
            channel.sendall(b"\x00\x00\x00\x05\x0c\x00\x00\x00\x00")
            assert read_all(channel) == b""
            channel.close()

        threading.Thread(target=serve, daemon=True).start()

    with Sshd(tmp_path) as sshd, connected(sshd) as transport:
        session = transport.open_session()
        session.settimeout(TIMEOUT_S)
        session.request_forward_agent(empty_agent)
        session.exec_command("ssh-add -l")
        assert b"no identities" in read_all(session)
        assert session.recv_exit_status() == 1
    # SSH_AGENTC_REQUEST_IDENTITIES
    assert asked.get_nowait() == b"\x00\x00\x00\x01\x0b"


def test_a_global_request_waits_for_its_reply_or_not(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        assert transport.global_request("nothing@example.com") is None
        assert transport.global_request("nothing@example.com", wait=False) is None
        assert transport.global_request("nothing@example.com", ("a", 1)) is None
    with connected_pair() as pair:
        reply = pair.client.global_request("twice@example.com", (21,))
        assert reply is not None
        assert reply.get_int() == 42
        pair.client.global_request("yes@example.com", wait=False)
        wait_until(lambda: pair.host.asked == [("yes@example.com",)])


def test_every_forwarded_port_has_its_own_handler(sshd: Sshd) -> None:
    def handler(name: bytes, seen: list[tuple[str, int]]) -> Any:
        def serve(channel: paramiko.Channel, origin: Any, bound: Any) -> None:
            seen.append(bound)
            channel.sendall(name)
            channel.close()

        return serve

    def answer(port: int) -> bytes:
        with visit(port) as sock:
            return read_all(sock)

    seen: list[tuple[str, int]] = []
    with connected(sshd) as transport:
        ports = [
            transport.request_port_forward("127.0.0.1", 0, handler(name, seen))
            for name in (b"one", b"two", b"three")
        ]
        assert [answer(port) for port in ports] == [b"one", b"two", b"three"]
        assert seen == [("127.0.0.1", port) for port in ports]
        transport.cancel_port_forward("127.0.0.1", ports[1])
        with pytest.raises(ConnectionRefusedError):
            visit(ports[1])
        assert answer(ports[0]) == b"one"
        assert answer(ports[2]) == b"three"


def test_visitors_of_a_port_without_a_handler_are_accepted(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        port = transport.request_port_forward("127.0.0.1", 0)
        assert transport.accept(0.01) is None
        with visit(port) as sock:
            channel = transport.accept(TIMEOUT_S)
            assert channel is not None
            channel.settimeout(TIMEOUT_S)
            assert channel.origin_addr == sock.getsockname()
            sock.sendall(b"hello")
            assert read_exactly(channel, 5) == b"hello"


def test_a_forward_that_is_refused_is_an_error(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, connected(sshd) as transport:
        port = taken.getsockname()[1]
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", port)
        assert transport.is_active()


def test_forwards_need_a_connection(sshd: Sshd) -> None:
    with dialled(sshd) as transport:
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)
        transport.cancel_port_forward("127.0.0.1", 1)


# The connection itself.


def test_keys_are_renewed_on_demand(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        session_id = transport.session_id
        for _ in range(3):
            transport.renegotiate_keys()
            assert run(transport, "echo new keys") == (b"new keys\n", 0)
        assert transport.session_id == session_id
        assert transport.engine_status.active


def test_messages_to_be_ignored_are(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        transport.send_ignore()
        transport.send_ignore(30_000)
        assert run(transport, "echo still here") == (b"still here\n", 0)


def test_a_keepalive_asks_after_silence(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        sent = transport.packetizer.heard_bytes
        transport.set_keepalive(0.02)
        # Only an answer of the server can make it hear something.
        wait_until(lambda: transport.packetizer.heard_bytes > sent)
        transport.set_keepalive(0)
        assert transport.is_active()


def test_the_log_channel_is_where_it_logs(
    sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "my.ssh")
    with dialled(sshd) as transport:
        assert transport.get_log_channel() == "rtunnel.ssh.paramiko"
        transport.set_log_channel("my.ssh")
        assert transport.get_log_channel() == "my.ssh"
        transport.start_client()
    assert "my.ssh" in {record.name for record in caplog.records}


def test_a_hex_dump_shows_messages_only_when_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def dumped() -> str:
        return "\n".join(
            record.getMessage()
            for record in caplog.records
            if re.match(r"(IN|OUT): [0-9A-F]{2} ", record.getMessage())
        )

    caplog.set_level(logging.DEBUG)
    with connected_pair() as pair:
        near, far = pair.open_session()
        assert pair.client.get_hexdump() is False
        near.sendall(b"a secret")
        assert read_exactly(far, 8) == b"a secret"
        assert dumped() == ""
        pair.client.set_hexdump(True)
        assert pair.client.get_hexdump() is True
        caplog.clear()
        near.sendall(b"forward")
        assert read_exactly(far, 7) == b"forward"
        far.sendall(b"return")
        assert read_exactly(near, 6) == b"return"
        text = dumped()
        assert "forward" in text
        assert "return" in text
        assert "OUT: channel-data, 16 bytes" in caplog.text
        assert "IN: channel-data, 15 bytes" in caplog.text
        pair.client.set_hexdump(False)
        caplog.clear()
        near.sendall(b"a secret")
        assert read_exactly(far, 8) == b"a secret"
        assert dumped() == ""


def test_a_password_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with stranger_pair() as pair:
        pair.client.auth_password("somebody", PASSWORD)
    assert PASSWORD not in caplog.text


def test_close_ends_channels_and_waiters(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        channel = transport.open_session()
        channel.settimeout(TIMEOUT_S)
        channel.exec_command("sleep 60")
        transport.close()
        transport.close()
        assert not transport.is_active()
        assert not transport.is_alive()
        assert read_all(channel) == b""
        assert channel.closed
        with pytest.raises(paramiko.SSHException):
            transport.open_session()


def test_stop_thread_ends_the_connection(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        transport.stop_thread()
        transport.join(TIMEOUT_S)
        assert not transport.is_alive()
        assert not transport.is_active()


def test_the_reason_of_the_end_can_be_asked_for(tmp_path: Path) -> None:
    with Sshd(tmp_path) as sshd, connected(sshd) as transport:
        sshd.kill_sessions()
        transport.join(TIMEOUT_S)
        assert not transport.is_active()
        # paramiko reports an end of file to those that wait, and to get_exception.
        assert isinstance(transport.get_exception(), EOFError | OSError)


def test_a_forked_child_leaves_the_connection_to_its_parent(sshd: Sshd) -> None:
    with connected(sshd) as transport, Target(echo) as target:
        listener = Tunnel(transport).listen(PORT_0, to=target.spec)
        with visit(listener.port) as sock:
            sock.sendall(b"before")
            assert read_exactly(sock, 6) == b"before"
            assert fork_and(transport.atfork) == 0
            sock.sendall(b"after")
            assert read_exactly(sock, 5) == b"after"
        assert transport.is_active()
        assert run(transport, "echo parent") == (b"parent\n", 0)


def test_a_parent_may_leave_the_connection_too(sshd: Sshd) -> None:
    with connected(sshd) as transport:
        theirs = os.dup(transport.sock.fileno())
        try:
            transport.atfork()
            assert not transport.is_active()
            assert not transport.is_alive()
            # Nobody told the server: the connection still stands, whatever it said
            # that nobody has read.
            os.set_blocking(theirs, False)
            with pytest.raises(BlockingIOError):
                collections.deque(iter(lambda: os.read(theirs, 4096), b""), maxlen=0)
        finally:
            os.close(theirs)


def fork_and(function: Any) -> int:
    """Call `function` in a child; return the child's exit status."""
    with warnings.catch_warnings():
        # Python 3.12 warns of what is tested here: forking with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        ended, result = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(result)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.005)
