"""The end of a connection: why it came, and who is told."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Final

import paramiko
from paramiko.message import Message

from rtunnel.errors import ConnectionLost, DisconnectCode, ProtocolError
from rtunnel.ssh import seams
from rtunnel.wire import Reader

log = logging.getLogger("rtunnel.ssh.connection")

# Of the text of a DISCONNECT: more than any server's reason has.
SAID_MAX_CHARACTERS: Final = 500
# sshd does not count listening ports as use of the connection (sshd_config(5)), and
# ends an unused one without a word.
_UNUSED: Final = (
    "; if this happens at regular intervals while nobody is connected, see "
    "UnusedConnectionTimeout in its sshd_config: listening ports do not count as use"
)


class Ending:
    """Whether a connection is over. Any thread; never blocks."""

    def __init__(self, transport: seams.AnyTransport) -> None:
        self._transport = transport
        # Protected by _lock; nothing is called while it is held.
        self._lock = threading.Lock()
        self._lost: ConnectionLost | None = None
        self._closed_here = False
        self._callbacks: list[Callable[[ConnectionLost], None]] = []
        # Only on the transport's thread.
        self._said: ConnectionLost | None = None

    @property
    def lost(self) -> ConnectionLost | None:
        """Why it is over; None while it stands."""
        return self._lost

    @property
    def closed_here(self) -> bool:
        """Whether it is over because this side closed it."""
        return self._closed_here

    def add_callback(self, callback: Callable[[ConnectionLost], None]) -> None:
        """Have `callback` called once when it is over: at once if it is."""
        with self._lock:
            lost = self._lost
            if lost is None:
                self._callbacks.append(callback)
        if lost is not None:
            callback(lost)

    def on_disconnect(self, message: Message) -> None:
        """The peer ends the connection, and says why. Transport's thread.

        Payload::
            uint32  reason code
            string  description, language
        """
        with contextlib.suppress(ProtocolError):
            fields = Reader(seams.payload(message))
            number, text = fields.u32(), _line(fields.text())
            known = number in DisconnectCode.__members__.values()
            code = DisconnectCode(number) if known else DisconnectCode.CONNECTION_LOST
            self._said = ConnectionLost(
                f"the server ended the connection: {text or 'no reason given'}", code
            )

    def begin(self, fault: ProtocolError | None, unused: bool) -> ConnectionLost | None:
        """Note that it is over, and return why; None if that was noted before.

        `fault` is what the peer was disconnected for, if it was. `unused`: ports were
        listening, and no channel was open.
        """
        with self._lock:
            if self._lost is not None:
                return None
            self._lost = fault or self._said or self._why(unused)
            return self._lost

    def tell(self) -> None:
        """Call those who wait for the end, after `begin`."""
        with self._lock:
            lost = self._lost
            callbacks, self._callbacks = self._callbacks, []
        assert lost is not None
        for callback in callbacks:
            try:
                callback(lost)
            except Exception:
                log.exception("an end callback failed: conn=%x", id(self._transport))

    def _why(self, unused: bool) -> ConnectionLost:
        transport = self._transport
        # paramiko's thread says that it is not active only after its notices; close()
        # of paramiko before.
        if getattr(transport, "is_closing", False) or not transport.is_active():
            self._closed_here = True
            return ConnectionLost(
                "the connection was closed by this side", DisconnectCode.BY_APPLICATION
            )
        error = seams.end_of(transport)
        if isinstance(error, ConnectionLost):
            return error
        if error is None or isinstance(error, EOFError):
            hint = _UNUSED if unused else ""
            return ConnectionLost(f"the server closed the connection{hint}")
        code = DisconnectCode.CONNECTION_LOST
        if isinstance(error, paramiko.SSHException):
            code = DisconnectCode.PROTOCOL_ERROR  # what paramiko raises for the peer
        return ConnectionLost(f"the connection failed: {error}", code)


def _line(text: str) -> str:
    """Make one line for a log of what the peer says."""
    text = text[:SAID_MAX_CHARACTERS]
    return "".join(c if c.isprintable() else " " for c in text).strip()
