"""Two `rtunnel.Transport`s that talk to each other, both run by the engine."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_UNKNOWN_CHANNEL_TYPE,
    OPEN_SUCCEEDED,
)
from paramiko.message import Message

import rtunnel

PASSWORD = "open sesame"
QUESTIONS = (("Colour: ", True), ("Code: ", False))
ANSWERS = ["blue", "42"]
CHANNEL_KINDS = ("session", "parcel@example.com")


class Host(paramiko.ServerInterface):
    """The server's side of a pair: says yes to most things, and keeps them in `asked`.

    `methods` are the ways to log in; user "guest" needs none of them.
    """

    def __init__(
        self, methods: str = "password,publickey,keyboard-interactive"
    ) -> None:
        self.methods = methods
        self.user_key = paramiko.ECDSAKey.generate()
        self.asked: list[tuple[Any, ...]] = []

    def _yes(self, *what: Any) -> bool:
        self.asked.append(what)
        return True

    # Logging in.

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def check_auth_none(self, username: str) -> int:
        return AUTH_SUCCESSFUL if username == "guest" else AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        right = "password" in self.methods.split(",") and password == PASSWORD
        return AUTH_SUCCESSFUL if right else AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if key == self.user_key else AUTH_FAILED

    def check_auth_interactive(
        self, username: str, submethods: str
    ) -> int | paramiko.InteractiveQuery:
        if "password" not in self.methods.split(","):
            return paramiko.InteractiveQuery("", "", ("Password: ", False))
        return paramiko.InteractiveQuery("Title", "Instructions", *QUESTIONS)

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        right = responses in (ANSWERS, [PASSWORD])
        return AUTH_SUCCESSFUL if right else AUTH_FAILED

    # Requests of the connection.

    def check_global_request(self, kind: str, msg: Message) -> bool | tuple[Any, ...]:
        if kind == "twice@example.com":
            return (2 * msg.get_int(),)
        return kind == "yes@example.com" and self._yes(kind)

    def check_port_forward_request(self, address: str, port: int) -> int:
        self._yes("listen", address, port)
        return port or 40_000

    def cancel_port_forward_request(self, address: str, port: int) -> None:
        self._yes("cancel", address, port)

    # Channels, and the requests on them.

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind in CHANNEL_KINDS:
            return OPEN_SUCCEEDED
        return OPEN_FAILED_UNKNOWN_CHANNEL_TYPE

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        self._yes("direct-tcpip", origin, destination)
        return OPEN_SUCCEEDED

    def check_channel_exec_request(
        self, channel: paramiko.Channel, command: bytes
    ) -> bool:
        return command != b"refuse me" and self._yes("exec", command)

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        return self._yes("shell")

    def check_channel_env_request(
        self, channel: paramiko.Channel, name: bytes, value: bytes
    ) -> bool:
        return self._yes("env", name, value)

    def check_channel_pty_request(
        self,
        channel: paramiko.Channel,
        term: bytes,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
        modes: bytes,
    ) -> bool:
        return self._yes("pty", term, width, height)

    def check_channel_window_change_request(
        self,
        channel: paramiko.Channel,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
    ) -> bool:
        return self._yes("window-change", width, height)

    def check_channel_x11_request(
        self,
        channel: paramiko.Channel,
        single_connection: bool,
        auth_protocol: str,
        auth_cookie: bytes,
        screen_number: int,
    ) -> bool:
        return self._yes("x11", auth_protocol, auth_cookie, screen_number)

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        return self._yes("agent")


@dataclass(frozen=True)
class Pair:
    """Both ends of one connection over loopback, and what decides for the server."""

    client: rtunnel.Transport
    server: rtunnel.Transport
    host: Host

    def open_session(self) -> tuple[paramiko.Channel, paramiko.Channel]:
        """Open a session; return the client's and the server's end of it."""
        near = self.client.open_session()
        return near, accepted(self.server)


def accepted(transport: paramiko.Transport) -> paramiko.Channel:
    """Return the next channel that was queued for `accept`."""
    channel = transport.accept(20.0)
    assert channel is not None
    return channel


@contextlib.contextmanager
def unmet_pair(host: Host | None = None, **options: Any) -> Iterator[Pair]:
    """Yield a pair before its key exchange; `options` are for both transports."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    options.setdefault("backend", "engine")
    client = rtunnel.Transport(near, **options)
    server = rtunnel.Transport(far, **options)
    server.add_server_key(paramiko.ECDSAKey.generate())
    try:
        yield Pair(client, server, host or Host())
    finally:
        client.close()
        server.close()
        # close() does nothing on one that was never started.
        near.close()
        far.close()


@contextlib.contextmanager
def stranger_pair(host: Host | None = None, **options: Any) -> Iterator[Pair]:
    """Yield a pair that has exchanged keys; nobody has logged in."""
    with unmet_pair(host, **options) as pair:
        pair.server.start_server(threading.Event(), pair.host)
        pair.client.start_client()
        yield pair


@contextlib.contextmanager
def connected_pair(host: Host | None = None, **options: Any) -> Iterator[Pair]:
    """Yield a pair with a user logged in, the engine running at both ends."""
    with stranger_pair(host, **options) as pair:
        pair.client.auth_none("guest")
        assert pair.client.engine_status.active
        assert pair.server.engine_status.active
        yield pair
