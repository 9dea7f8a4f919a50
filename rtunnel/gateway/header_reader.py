"""Read the PROXY header that a load balancer puts before a connection."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final

from rtunnel.errors import ProtocolError
from rtunnel.gateway.loop import Loop, Timer
from rtunnel.proxy_protocol import ProxyHeader, ProxyHeaderParser

log = logging.getLogger("rtunnel.gateway.header_reader")

# As haproxy's own example of `timeout client-hs`; it comes with the first packet.
HEADER_TIMEOUT_S: Final = 10.0

Done = Callable[[ProxyHeader | None], None]


class HeaderReader:
    """Reads one header, and no byte beyond. Only on the loop's thread.

    `done` gets the header, or None: there was none in time, and the socket is closed.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, address: object, done: Done
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._address = address
        self._done = done
        self._parser = ProxyHeaderParser()
        self._timer: Timer = loop.call_later(HEADER_TIMEOUT_S, self._give_up)
        loop.watch(sock, self._read)

    def close(self) -> None:
        """Read no more, and close the socket; `done` is not called."""
        self._leave()
        self._sock.close()

    def _read(self) -> None:
        try:
            while self._parser.wanted:
                data = self._sock.recv(self._parser.wanted, socket.MSG_DONTWAIT)
                if not data:
                    # A health check that only connects, say.
                    self._fail(None)
                    return
                header = self._parser.feed(data)
                if header is not None:
                    self._leave()
                    self._done(header)
                    return
        except BlockingIOError:
            return
        except (ProtocolError, OSError) as error:
            self._fail(error)

    def _give_up(self) -> None:
        self._fail(TimeoutError(f"no PROXY header came within {HEADER_TIMEOUT_S} s"))

    def _fail(self, error: Exception | None) -> None:
        if error is not None:
            log.warning("refused a connection: from=%s reason=%s", self._address, error)
        self.close()
        self._done(None)

    def _leave(self) -> None:
        self._timer.cancel()
        self._loop.leave(self._sock)
