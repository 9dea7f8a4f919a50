"""paramiko's documented API on `rtunnel.Transport`: the server's side.

Both ends of each connection are run by the engine.
"""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.kex_group14 import KexGroup14SHA256
from paramiko.sftp import SFTP_FAILURE, SFTP_OK

from tests.support.pair import (
    ANSWERS,
    PASSWORD,
    QUESTIONS,
    Host,
    accepted,
    connected_pair,
    stranger_pair,
    unmet_pair,
)
from tests.support.sshd import wait_until
from tests.support.tunnels import TIMEOUT_S, noise, read_all, read_exactly


def assert_speaks(near: paramiko.Channel, far: paramiko.Channel) -> None:
    """Both ends hear each other, then the end of each other."""
    for sender, receiver in ((near, far), (far, near)):
        receiver.settimeout(TIMEOUT_S)
        sender.sendall(b"hello")
        assert read_exactly(receiver, 5) == b"hello"
        sender.shutdown_write()
        assert read_all(receiver) == b""
    near.close()
    far.close()


# Starting.


def test_start_server_waits_or_sets_an_event() -> None:
    with unmet_pair() as pair:
        meeting = threading.Event()
        pair.client.start_client(meeting)
        pair.server.start_server(server=pair.host)
        assert meeting.wait(TIMEOUT_S)
        assert pair.server.engine_status.active
    with unmet_pair() as pair:
        met = threading.Event()
        pair.server.start_server(met, pair.host)
        pair.client.start_client()
        assert met.wait(TIMEOUT_S)
        assert pair.server.engine_status.active


def test_the_host_key_is_the_one_that_was_agreed_upon() -> None:
    with unmet_pair() as pair:
        rsa = paramiko.RSAKey.generate(2048)
        pair.server.add_server_key(rsa)
        assert pair.server.get_server_key() is None
        pair.client.get_security_options().key_types = ("rsa-sha2-512",)
        pair.server.start_server(threading.Event(), pair.host)
        pair.client.start_client()
        wait_until(lambda: pair.server.get_server_key() is rsa)
        assert pair.client.get_remote_server_key() == rsa


def test_moduli_allow_the_group_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paramiko.Transport, "_modulus_pack", None)
    moduli = tmp_path / "moduli"
    moduli.write_text(f"20260101000000 2 6 100 2047 2 {KexGroup14SHA256.P:X}\n")
    assert paramiko.Transport.load_server_moduli(str(moduli))
    with unmet_pair() as pair:
        pair.client.get_security_options().kex = (
            "diffie-hellman-group-exchange-sha256",
        )
        pair.server.start_server(threading.Event(), pair.host)
        pair.client.start_client()
        pair.client.auth_none("guest")
        pair.client.renegotiate_keys()
        assert_speaks(*pair.open_session())


# Logging in.


def test_a_password_logs_in() -> None:
    with stranger_pair() as pair:
        with pytest.raises(paramiko.AuthenticationException):
            pair.client.auth_password("somebody", "wrong")
        assert pair.client.auth_password("somebody", PASSWORD) == []
        assert pair.client.is_authenticated()
        assert pair.server.is_authenticated()
        assert pair.server.get_username() == "somebody"


def test_a_login_with_an_event_does_not_wait() -> None:
    with stranger_pair() as pair:
        done = threading.Event()
        pair.client.auth_password("somebody", PASSWORD, done)
        assert done.wait(TIMEOUT_S)
        assert pair.client.is_authenticated()
    with stranger_pair() as pair:
        done = threading.Event()
        pair.client.auth_password("somebody", "wrong", done)
        assert done.wait(TIMEOUT_S)
        assert not pair.client.is_authenticated()


def test_a_password_falls_back_to_answering_a_question() -> None:
    with stranger_pair(Host("keyboard-interactive")) as pair:
        with pytest.raises(paramiko.BadAuthenticationType):
            pair.client.auth_password("somebody", PASSWORD, fallback=False)
        pair.client.auth_password("somebody", PASSWORD)
        assert pair.client.is_authenticated()


def test_a_key_logs_in() -> None:
    with stranger_pair() as pair:
        pair.client.auth_publickey("somebody", pair.host.user_key)
        assert pair.client.is_authenticated()


def test_answers_log_in() -> None:
    asked: list[Any] = []

    def answer(title: str, instructions: str, prompts: Any) -> list[str]:
        asked.append((title, instructions, tuple(prompts)))
        return ANSWERS

    with stranger_pair() as pair:
        pair.client.auth_interactive("somebody", answer)
        assert pair.client.is_authenticated()
    assert asked == [("Title", "Instructions", QUESTIONS)]


def test_nothing_is_granted_before_the_login() -> None:
    with stranger_pair() as pair:
        with pytest.raises(paramiko.ChannelException):
            pair.client.open_session()
        with pytest.raises(paramiko.SSHException):
            pair.client.request_port_forward("", 1)
        pair.client.auth_none("guest")
        assert_speaks(*pair.open_session())


# Channels of every kind.


def test_a_session_is_accepted() -> None:
    with connected_pair() as pair:
        assert pair.server.accept(0.01) is None
        assert_speaks(*pair.open_session())


def test_a_channel_of_a_private_kind_is_accepted_or_refused() -> None:
    with connected_pair() as pair:
        near = pair.client.open_channel("parcel@example.com")
        assert_speaks(near, accepted(pair.server))
        with pytest.raises(paramiko.ChannelException) as caught:
            pair.client.open_channel("other@example.com")
        assert caught.value.code == 3  # UNKNOWN_CHANNEL_TYPE


def test_a_direct_channel_names_origin_and_destination() -> None:
    origin, destination = ("127.0.0.1", 1), ("localhost", 2)
    with connected_pair() as pair:
        near = pair.client.open_channel("direct-tcpip", destination, origin)
        assert_speaks(near, accepted(pair.server))
        assert pair.host.asked == [("direct-tcpip", origin, destination)]


def test_forwarded_channels_go_to_the_handler_of_their_port() -> None:
    arrived: queue.Queue[tuple[Any, ...]] = queue.Queue()
    origin = ("192.0.2.1", 50_000)
    with connected_pair() as pair:
        client, server = pair.client, pair.server
        for name, port in (("web", 80), ("mail", 25)):
            given = client.request_port_forward(
                "", port, lambda *what, name=name: arrived.put((name, *what))
            )
            assert given == port
        port = client.request_port_forward("", 0)
        assert port == 40_000
        for name, port in (("web", 80), ("mail", 25)):
            far = server.open_forwarded_tcpip_channel(origin, ("", port))
            assert far is not None
            what, near, seen_origin, bound = arrived.get(timeout=TIMEOUT_S)
            assert (what, seen_origin, bound) == (name, origin, ("", port))
            assert_speaks(near, far)
        far = server.open_channel("forwarded-tcpip", ("", 40_000), origin)
        assert_speaks(accepted(client), far)
        with pytest.raises(paramiko.ChannelException) as caught:
            server.open_forwarded_tcpip_channel(origin, ("", 8080))
        assert caught.value.code == 1  # ADMINISTRATIVELY_PROHIBITED
        client.cancel_port_forward("", 25)
        with pytest.raises(paramiko.ChannelException):
            server.open_forwarded_tcpip_channel(origin, ("", 25))
        assert pair.host.asked == [
            ("listen", "", 80),
            ("listen", "", 25),
            ("listen", "", 0),
            ("cancel", "", 25),
        ]


def test_x11_channels_go_to_their_handler() -> None:
    arrived: queue.Queue[tuple[Any, ...]] = queue.Queue()
    with connected_pair() as pair:
        near, far = pair.open_session()
        with pytest.raises(paramiko.ChannelException):
            pair.server.open_x11_channel(("127.0.0.1", 6010))
        cookie = near.request_x11(handler=lambda *what: arrived.put(what))
        assert pair.host.asked == [("x11", "MIT-MAGIC-COOKIE-1", cookie, 0)]
        far_x11 = pair.server.open_x11_channel(("127.0.0.1", 6010))
        near_x11, origin = arrived.get(timeout=TIMEOUT_S)
        assert origin == ("127.0.0.1", 6010)
        assert_speaks(near_x11, far_x11)
        assert_speaks(near, far)


def test_x11_channels_without_a_handler_are_accepted() -> None:
    with connected_pair() as pair:
        near, _far = pair.open_session()
        near.request_x11()
        far_x11 = pair.server.open_x11_channel(("127.0.0.1", 6010))
        assert_speaks(accepted(pair.client), far_x11)


def test_agent_channels_go_to_their_handler() -> None:
    arrived: queue.Queue[paramiko.Channel] = queue.Queue()
    with connected_pair() as pair:
        near, _far = pair.open_session()
        assert near.request_forward_agent(arrived.put)
        wait_until(lambda: pair.host.asked == [("agent",)])
        for far in (
            pair.server.open_forward_agent_channel(),
            pair.server.open_channel("auth-agent@openssh.com"),
        ):
            assert_speaks(arrived.get(timeout=TIMEOUT_S), far)


# Sessions.


def test_requests_on_a_session_reach_the_server() -> None:
    with connected_pair() as pair:
        near, far = pair.open_session()
        near.get_pty("vt100", 99, 33)
        near.resize_pty(98, 32)
        near.set_environment_variable("LANG", "C")
        near.invoke_shell()
        wait_until(lambda: len(pair.host.asked) == 4)
        assert pair.host.asked == [
            ("pty", b"vt100", 99, 33),
            ("window-change", 98, 32),
            ("env", b"LANG", b"C"),
            ("shell",),
        ]
        assert_speaks(near, far)


def test_a_command_has_three_streams_and_a_status() -> None:
    with connected_pair() as pair:
        near, far = pair.open_session()
        near.settimeout(TIMEOUT_S)
        far.settimeout(TIMEOUT_S)
        near.exec_command("do it")
        near.sendall(b"input")
        near.shutdown_write()
        assert read_all(far) == b"input"
        far.sendall(b"output")
        far.sendall_stderr(b"complaint")
        far.send_exit_status(7)
        far.close()
        assert read_all(near) == b"output"
        assert near.makefile_stderr("rb").read() == b"complaint"
        assert near.recv_exit_status() == 7
        assert pair.host.asked == [("exec", b"do it")]


def test_a_request_of_any_kind_can_be_made_on_a_channel() -> None:
    with connected_pair() as pair:
        near, far = pair.open_session()
        pair.client.channel_request(near, "exec", b"\x00\x00\x00\x05do it")
        assert pair.host.asked == [("exec", b"do it")]
        pair.client.channel_request(near, "no@example.com", b"payload", wait=False)
        assert_speaks(near, far)
        near, far = pair.open_session()
        with pytest.raises(paramiko.SSHException):
            pair.client.channel_request(near, "no@example.com", b"payload")
        assert near.closed


# Subsystems.


class Shouter(paramiko.SubsystemHandler):
    """Says back in capitals what it hears; `greeting` comes first."""

    def __init__(
        self, channel: Any, name: str, server: Any, greeting: bytes, *, end: bytes
    ) -> None:
        super().__init__(channel, name, server)
        self._greeting, self._end = greeting, end

    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        channel.sendall(self._greeting)
        while heard := channel.recv(1000):
            channel.sendall(heard.upper())
        channel.sendall(self._end)


class OpenFile(paramiko.SFTPHandle):
    """One file that is open, for reading and writing."""

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class Folder(paramiko.SFTPServerInterface):
    """As much of SFTP as it takes to put, list and get files of one folder."""

    def __init__(self, server: Any, folder: Path) -> None:
        super().__init__(server)
        self._folder = folder

    def _path(self, name: str) -> Path:
        return self._folder / name.lstrip("/")

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            file = os.fdopen(os.open(self._path(path), flags, 0o600), "r+b", 0)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        handle = OpenFile(flags)
        handle.readfile = handle.writefile = file
        return handle

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    lstat = stat

    def list_folder(self, path: str) -> Any:
        return [
            paramiko.SFTPAttributes.from_stat(entry.stat(), entry.name)
            for entry in self._path(path).iterdir()
        ]

    def remove(self, path: str) -> int:
        try:
            self._path(path).unlink()
        except OSError:
            return SFTP_FAILURE
        return SFTP_OK


def test_a_subsystem_is_served_by_its_handler() -> None:
    with connected_pair() as pair:
        pair.server.set_subsystem_handler("shout", Shouter, b"hi ", end=b"!")
        near, _far = pair.open_session()
        near.settimeout(TIMEOUT_S)
        near.invoke_subsystem("shout")
        near.sendall(b"hello")
        near.shutdown_write()
        assert read_all(near) == b"hi HELLO!"
        near, _far = pair.open_session()
        with pytest.raises(paramiko.SSHException):
            near.invoke_subsystem("whisper")


def test_sftp_is_served_by_a_subsystem(tmp_path: Path) -> None:
    content = noise(3_000_000)
    with connected_pair(rekey_bytes=256 * 1024) as pair:
        pair.server.set_subsystem_handler(
            "sftp", paramiko.SFTPServer, Folder, folder=tmp_path
        )
        with pair.client.open_sftp_client() as sftp:
            with sftp.open("content", "wb") as file:
                file.set_pipelined()
                file.write(content)
            assert sftp.listdir("/") == ["content"]
            assert sftp.stat("content").st_size == len(content)
            assert (tmp_path / "content").read_bytes() == content
            with sftp.open("content", "rb") as file:
                file.prefetch()
                assert file.read() == content
            sftp.remove("content")
            with pytest.raises(FileNotFoundError):
                sftp.stat("content")
