"""A scripted SSH server in the test's own process: it says what the test says.

The handshake is paramiko's; every message of the connection protocol is recorded and
answered by the test, so that it can be late, wrong or out of order.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import paramiko
from paramiko.message import Message

from rtunnel.ssh import seams
from rtunnel.wire import Reader, boolean, string, u32

TIMEOUT_S: Final = 20.0
FIRST, LAST = seams.MSG_GLOBAL_REQUEST, seams.MSG_CHANNEL_FAILURE


class _Server(paramiko.ServerInterface):
    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "none"


PROBE = b"keepalive@openssh.com"


class ScriptedPeer:
    """The server's end of one connection. `client` is a transport to it."""

    def __init__(
        self,
        client_class: Callable[[Any], paramiko.Transport] = paramiko.Transport,
        server_class: Callable[[Any], paramiko.Transport] = paramiko.Transport,
        *,
        meet: bool = True,
    ) -> None:
        ours, theirs = socket.socketpair()
        self.transport: Any = server_class(ours)
        self.transport.add_server_key(paramiko.ECDSAKey.generate())
        self.messages: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self.disconnect: tuple[int, str] | None = None
        for kind in range(FIRST, LAST + 1):
            self.transport._handler_table[kind] = self._recorder(kind)
        self.transport._parse_disconnect = self._on_disconnect
        self.client = client_class(theirs)
        self.prepare()
        if meet:
            self.meet()

    def prepare(self) -> None:
        """Called before the handshake."""

    def meet(self) -> None:
        """Exchange keys, and let the client in."""
        self.transport.start_server(event=threading.Event(), server=_Server())
        self.client.start_client(timeout=TIMEOUT_S)
        self.client.auth_none("anybody")

    def _recorder(self, kind: int) -> seams.Handler:
        def record(message: Message) -> None:
            payload = seams.payload(message)
            # The engine's probes come when time has passed; here nobody answers.
            if kind != seams.MSG_CHANNEL_REQUEST or PROBE not in payload:
                self.messages.put((kind, payload))

        return record

    def _on_disconnect(self, message: Message) -> None:
        fields = Reader(seams.payload(message))
        self.disconnect = (fields.u32(), fields.text())

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send any message at all."""
        self.transport._send_user_message(Message(bytes([kind]) + payload))

    def expect(self, kind: int) -> Reader:
        """Wait for the client's next message, which must be of this type."""
        got, payload = self.messages.get(timeout=TIMEOUT_S)
        assert got == kind, f"expected message {kind}, got {got}: {payload!r}"
        return Reader(payload)

    def expect_nothing(self) -> None:
        """Wait until the client has read everything; it must not have answered.

        What it answers to this request comes behind all that it said before.
        """
        self.send(seams.MSG_GLOBAL_REQUEST, string("barrier@test") + boolean(True))
        self.expect(seams.MSG_REQUEST_FAILURE)

    def expect_request(self, kind: str) -> Reader:
        """Wait for a global request; return the fields behind `want reply`."""
        fields = self.expect(seams.MSG_GLOBAL_REQUEST)
        assert fields.text() == kind
        assert fields.boolean()
        return fields

    def grant(self, payload: bytes = b"") -> None:
        self.send(seams.MSG_REQUEST_SUCCESS, payload)

    def refuse(self) -> None:
        self.send(seams.MSG_REQUEST_FAILURE)

    def debug(self, text: str) -> None:
        self.send(4, boolean(False) + string(text) + string(""))

    def open_forwarded(
        self,
        port: int,
        address: str = "localhost",
        number: int = 7,
        window: int = 2**21,
        max_packet: int = 2**15,
    ) -> None:
        """Open a forwarded-tcpip channel, requested or not."""
        self.send(
            seams.MSG_CHANNEL_OPEN,
            string("forwarded-tcpip")
            + u32(number)
            + u32(window)
            + u32(max_packet)
            + string(address)
            + u32(port)
            + string("192.0.2.1")
            + u32(50000),
        )

    def expect_confirmation(self, number: int = 7) -> int:
        """Wait for the client to confirm an open; return the client's number."""
        fields = self.expect(seams.MSG_CHANNEL_OPEN_CONFIRMATION)
        assert fields.u32() == number
        return fields.u32()

    def expect_open_failure(self, number: int = 7) -> int:
        """Wait for the client to refuse an open; return the reason code."""
        fields = self.expect(seams.MSG_CHANNEL_OPEN_FAILURE)
        assert fields.u32() == number
        return fields.u32()

    def close(self) -> None:
        self.client.close()
        self.transport.close()
        for transport in (self.client, self.transport):
            if transport.is_alive():
                transport.join(TIMEOUT_S)
            transport.sock.close()  # close() does nothing on one that never started

    def __enter__(self) -> ScriptedPeer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
