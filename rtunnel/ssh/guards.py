"""What paramiko's own channels let a peer do, and a peer may not.

Theory of operation. paramiko believes its peer: data over the window is buffered
without an end, an answer to an open or to a request is taken for any channel at any
time, a message of a type it does not know ends the connection by a KeyError, DEBUG is
made printable byte by byte whether it is logged or not, and every channel number there
ever was is remembered. Guards stand before the handlers of one
transport and let pass what RFC 4254 allows. What is merely late or stray is dropped
and leaves nothing behind; what breaks a rule ends the connection.

All of it runs on the transport's thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Final, NoReturn

import paramiko
from paramiko.common import MSG_NAMES
from paramiko.message import Message

from rtunnel.errors import OpenFailureCode, ProtocolError
from rtunnel.ssh import seams
from rtunnel.window import GRACE_PERCENT, WINDOW_LIMIT_BYTES
from rtunnel.wire import Reader, string, u32

log = logging.getLogger("rtunnel.ssh.guards")

# Channels that wait for `transport.accept()`: as many opens as may be undecided.
ACCEPT_QUEUE_MAX: Final = 4096
# The only type of extended data there is: stderr (RFC 4254, section 5.2).
STDERR: Final = 1

Fail = Callable[[ProtocolError], NoReturn]

_ATTRIBUTE: Final = "_rtunnel_guards"


def guard(transport: seams.AnyTransport, fail: Fail) -> None:
    """Put guards before the handlers of a transport, once.

    `fail` ends the connection; it must not return.
    """
    if not hasattr(transport, _ATTRIBUTE):
        setattr(transport, _ATTRIBUTE, Guards(transport, fail))


class Guards:
    """The guards of one transport."""

    def __init__(self, transport: seams.AnyTransport, fail: Fail) -> None:
        self._transport = transport
        self._fail = fail
        handlers = seams.handler_table(transport)
        for kind, check in (
            (seams.MSG_CHANNEL_OPEN, self._check_open),
            (seams.MSG_CHANNEL_OPEN_CONFIRMATION, self._check_confirmation),
            (seams.MSG_CHANNEL_OPEN_FAILURE, self._check_answer),
        ):
            handlers[kind] = self._checked(check, handlers[kind])
        for kind in set(range(1, 256)).difference(MSG_NAMES, handlers):
            handlers[kind] = self._answer_unknown
        seams.shadow(transport, "_parse_debug", self._on_debug)
        seams.take_every_channel_for_seen(transport)
        seams.mark_questions(transport)
        seams.check_channel_messages(
            transport,
            {
                seams.MSG_CHANNEL_DATA: self._check_data,
                seams.MSG_CHANNEL_EXTENDED_DATA: self._check_extended,
                seams.MSG_CHANNEL_WINDOW_ADJUST: self._check_adjust,
                seams.MSG_CHANNEL_SUCCESS: self._check_reply,
                seams.MSG_CHANNEL_FAILURE: self._check_reply,
            },
        )

    def _checked(
        self, check: Callable[[Reader], bool], original: seams.Handler
    ) -> seams.Handler:
        def handle(message: Message) -> None:
            try:
                passes = check(Reader(seams.payload(message)))
            except ProtocolError as error:
                self._fail(error)
            if passes:
                original(seams.rewind(message))

        return handle

    def _answer_unknown(self, message: Message) -> None:
        """Answer a message of a type that nobody knows (RFC 4253, section 11.4).

        ping@openssh.com (OpenSSH's PROTOCOL, 1.8) is one of them: it is for those who
        have seen it offered, which it is not here.
        """
        seams.send_unimplemented(self._transport, message)

    def _on_debug(self, message: Message) -> None:
        """Log what the peer says; a message that is cut short is no worse than none.

        Payload::
            boolean always display
            string  message, language
        """
        fields = Reader(seams.payload(message))
        with contextlib.suppress(ProtocolError):
            fields.boolean()
            text = fields.text()
            log.debug("peer says: conn=%x text=%r", id(self._transport), text)

    def _check_open(self, fields: Reader) -> bool:
        """Let an open pass whose channel can be used, and is not one too many."""
        fields.text()
        remote_id, _, max_packet_bytes = fields.u32(), fields.u32(), fields.u32()
        _check_max_packet(max_packet_bytes)
        if seams.accept_queue_length(self._transport) < ACCEPT_QUEUE_MAX:
            return True
        seams.send_now(
            self._transport,
            bytes([seams.MSG_CHANNEL_OPEN_FAILURE])
            + u32(remote_id)
            + u32(OpenFailureCode.RESOURCE_SHORTAGE)
            + string("too many channels wait")
            + string("en"),
        )
        return False

    def _check_confirmation(self, fields: Reader) -> bool:
        if not self._check_answer(fields):
            return False
        fields.u32(), fields.u32()
        _check_max_packet(fields.u32())
        return True

    def _check_answer(self, fields: Reader) -> bool:
        """Let the answer to an open of paramiko's pass, once.

        Any other would give a channel that stands another number and window, or be
        taken for the reason why something failed later.
        """
        number = fields.u32()
        expected = seams.is_opening(self._transport, number)
        if not expected:
            log.warning(
                "dropped an answer to no open: conn=%x chan=%d",
                id(self._transport),
                number,
            )
        return expected

    # Messages of one channel of paramiko's. The fields are behind its number.

    def _check_data(self, channel: paramiko.Channel, fields: Reader) -> bool:
        return self._may_arrive(channel, len(fields.string()))

    def _check_extended(self, channel: paramiko.Channel, fields: Reader) -> bool:
        kind, count = fields.u32(), len(fields.string())
        passes = self._may_arrive(channel, count)
        if kind == STDERR:
            return passes
        # Nobody will ever read it, but it uses up the window all the same.
        seams.credit(channel, count)
        return False

    def _may_arrive(self, channel: paramiko.Channel, count: int) -> bool:
        window_bytes, max_packet_bytes = seams.receive_limits(channel)
        if count > max_packet_bytes:
            self._fail(ProtocolError("the peer sent more than the maximum packet"))
        # All that arrived and was not credited.
        taken_bytes = seams.uncredited_bytes(channel) + count
        if taken_bytes > window_bytes + window_bytes * GRACE_PERCENT // 100:
            self._fail(ProtocolError("the peer ignored the channel window"))
        # Behind EOF there is no data: nobody may read it, or some of it.
        return not channel.eof_received

    def _check_adjust(self, channel: paramiko.Channel, fields: Reader) -> bool:
        if seams.send_window_bytes(channel) + fields.u32() > WINDOW_LIMIT_BYTES:
            self._fail(ProtocolError("the peer's window went over 2^32-1"))
        return True

    def _check_reply(self, channel: paramiko.Channel, fields: Reader) -> bool:
        """Let the reply to a request pass, once; FAILURE closes paramiko's channel."""
        return seams.awaits_reply(channel)


def _check_max_packet(max_packet_bytes: int) -> None:
    if max_packet_bytes == 0:
        raise ProtocolError("the peer wants channel packets of 0 bytes at most")
