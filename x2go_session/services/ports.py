"""The port that a session has for a service, or another one if that is taken."""

from __future__ import annotations

import logging
from typing import Any, Final

import rtunnel
from rtunnel.errors import ForwardRefused, PortInUse

log = logging.getLogger("x2go_session.services.ports")

LOOPBACK: Final = "127.0.0.1"


def listen(tunnel: rtunnel.Tunnel, port: int, **options: Any) -> rtunnel.Listener:
    """Listen on a port of the server's loopback; on one it chooses if that is taken.

    The server chose the port when the session began, from those that programs get for
    their own connections, too; and it reserves nothing. Whoever uses the port has to
    ask the listener which one it is. `options` are those of `Tunnel.listen`, and so is
    what this raises; blocks.
    """
    try:
        return tunnel.listen((LOOPBACK, port), **options)
    except PortInUse as taken:
        try:
            listener = tunnel.listen((LOOPBACK, 0), **options)
        except ForwardRefused:
            raise taken from None
        log.info("port taken: wanted=%d got=%d", port, listener.port)
        return listener
