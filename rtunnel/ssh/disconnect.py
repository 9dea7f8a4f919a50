"""The last message of a connection that we end (RFC 4253, section 11.1)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from rtunnel.errors import ConnectionLost, DisconnectCode
from rtunnel.wire import string, u32

log = logging.getLogger("rtunnel.ssh.disconnect")

MSG_DISCONNECT: Final = 1
# How long it may take to leave.
DISCONNECT_TIMEOUT_S: Final = 1.0


def say_disconnect(send: Callable[[bytes], None], error: ConnectionLost) -> None:
    """Send DISCONNECT with code and text of `error`; wait for it for a moment.

    The peer's log should have it. On a thread of its own: a socket that is full may
    hold the message up.

    Payload::
        byte    SSH_MSG_DISCONNECT
        uint32  reason code
        string  description, language
    """
    packet = (
        bytes([MSG_DISCONNECT])
        + u32(DisconnectCode(error.code))
        + string(str(error))
        + string("")
    )

    def run() -> None:
        try:
            send(packet)
        except Exception as problem:
            log.debug("no disconnect sent: error=%s", problem)

    sender = threading.Thread(target=run, name="rtunnel-disconnect", daemon=True)
    sender.start()
    sender.join(DISCONNECT_TIMEOUT_S)
