"""Channels that we open: numbered, sent, and waiting for the peer's answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rtunnel.errors import (
    ChannelOpenError,
    ConnectionLost,
    OpenFailureCode,
    ProtocolError,
    RequestTimeout,
)
from rtunnel.ssh import seams
from rtunnel.ssh.relay import Opening, PeerSide, Relay
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from rtunnel.wire import Reader, string, u32

Opened = Relay | ChannelOpenError | ConnectionLost
OnOpened = Callable[[Opened], None]


class _Waiting:
    """An open of ours: done when the peer has answered, or the connection ended."""

    def __init__(self, opening: Opening, on_opened: OnOpened | None = None) -> None:
        self.opening = opening
        self.on_opened = on_opened
        self.done = threading.Event()
        self.abandoned = False
        self.relay: Relay | None = None
        self.error: ChannelOpenError | ConnectionLost | None = None


class Openings:
    """The opens of ours that the peer of one connection has not answered."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        # Protected by _lock: everything below, and `_Waiting.abandoned`.
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._lost: ConnectionLost | None = None

    def open(
        self, opening: Opening, kind: str, payload: bytes, timeout_s: float | None
    ) -> Relay:
        """Send CHANNEL_OPEN and wait for the answer."""
        waiting = _Waiting(opening)
        self._submit(waiting, kind, payload)
        if not waiting.done.wait(timeout_s):
            with self._lock:
                # The number stays taken until the peer has answered after all.
                waiting.abandoned = not waiting.done.is_set()
            if waiting.abandoned:
                raise RequestTimeout(
                    f"the server did not answer the open of a {kind!r} channel "
                    f"within {timeout_s} s"
                )
        if waiting.relay is None:
            assert waiting.error is not None
            raise waiting.error
        return waiting.relay

    def open_later(
        self, opening: Opening, kind: str, payload: bytes, on_opened: OnOpened
    ) -> None:
        """Send CHANNEL_OPEN; `on_opened` gets the answer. Never blocks.

        It is called once: on the transport's thread, or here when the connection is
        over.
        """
        self._submit(_Waiting(opening, on_opened), kind, payload)

    def _submit(self, waiting: _Waiting, kind: str, payload: bytes) -> None:
        """Number the open and send it.

        Payload::
            byte    SSH_MSG_CHANNEL_OPEN
            string  channel type
            uint32  sender channel, initial window, max packet
            ....    data of this type
        """
        number = waiting.opening.local_id
        with self._lock:
            lost = self._lost
            if lost is None:
                self._waiting[number] = waiting
        if lost is not None:
            waiting.opening.cancel()
            self._finish(waiting, error=lost)
            return
        self._send(
            bytes([seams.MSG_CHANNEL_OPEN])
            + string(kind)
            + u32(number)
            + u32(RECEIVE_WINDOW_BYTES)
            + u32(MAX_PACKET_BYTES)
            + payload
        )

    def confirmed(self, payload: bytes) -> bool:
        """Take CHANNEL_OPEN_CONFIRMATION; False if the open was not one of ours.

        Payload::
            uint32  recipient channel, sender channel, initial window, max packet
        """
        fields = Reader(payload)
        number = fields.u32()
        if not self._is_waiting(number):
            return False
        # Read to the end before it is taken: else an answer that ends the connection
        # leaves an open that `fail` does not find.
        peer = read_peer_side(fields)
        waiting = self._take(number)
        if waiting is not None:
            self._finish(waiting, relay=waiting.opening.confirm(peer))
        return True

    def refused(self, payload: bytes) -> bool:
        """Take CHANNEL_OPEN_FAILURE; False if the open was not one of ours.

        Payload::
            uint32  recipient channel, reason code
            string  description, language
        """
        fields = Reader(payload)
        number = fields.u32()
        if not self._is_waiting(number):
            return False
        code, text = fields.u32(), fields.text()
        waiting = self._take(number)
        if waiting is None:
            return True
        waiting.opening.cancel()
        error = ChannelOpenError(
            f"the server refused the channel: {text or 'no reason given'} "
            f"({_code_name(code)})",
            code,
        )
        self._finish(waiting, error=error)
        return True

    def fail(self, lost: ConnectionLost) -> None:
        """The connection is over: so are all opens, and all to come."""
        with self._lock:
            self._lost = lost
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for entry in waiting:
            entry.opening.cancel()
            self._finish(entry, error=lost)

    def _is_waiting(self, number: int) -> bool:
        with self._lock:
            return number in self._waiting

    def _take(self, number: int) -> _Waiting | None:
        """Take an open out; None if the connection has ended meanwhile."""
        with self._lock:
            return self._waiting.pop(number, None)

    def _finish(
        self,
        waiting: _Waiting,
        *,
        relay: Relay | None = None,
        error: ChannelOpenError | ConnectionLost | None = None,
    ) -> None:
        waiting.relay, waiting.error = relay, error
        with self._lock:
            waiting.done.set()
            abandoned = waiting.abandoned
        if abandoned and relay is not None:
            relay.reset()
        opened = relay or error
        if waiting.on_opened is not None and opened is not None:
            waiting.on_opened(opened)


def read_peer_side(fields: Reader) -> PeerSide:
    """Read sender channel, initial window and max packet of an open or its answer."""
    peer = PeerSide(fields.u32(), fields.u32(), fields.u32())
    if peer.max_packet_bytes == 0:
        raise ProtocolError("the peer wants channel packets of 0 bytes at most")
    return peer


def _code_name(code: int) -> str:
    known = code in OpenFailureCode.__members__.values()
    return OpenFailureCode(code).name if known else f"code {code}"
