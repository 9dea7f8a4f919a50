"""Dials what each visitor asks for: what `ssh -R port` offers on the server.

Unlike ssh, which says yes before it has tried, the visitor is answered when the
target has: its client can tell a host that is down from one that refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from typing import TYPE_CHECKING, Final

from rtunnel.addresses import TcpTarget
from rtunnel.errors import ListenerClosed
from rtunnel.policy import Policy
from rtunnel.pump import PairEnd
from rtunnel.socks import Reply, SocksError, SocksParser
from rtunnel.ssh.relay import RelayEnd
from rtunnel.tunnel.workers import Workers

if TYPE_CHECKING:
    from rtunnel.tunnel.visit import Visit

log = logging.getLogger("rtunnel.tunnel.socks")

# Who says nothing for so long is not going to: LoginGraceTime's order of magnitude.
REQUEST_TIMEOUT_S: Final = 60.0
# How long a visitor that is turned away may take to read why: lingering_timeout of
# nginx.
LINGER_S: Final = 5.0

_REPLIES: Final = {
    errno.ECONNREFUSED: Reply.REFUSED,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.ETIMEDOUT: Reply.TIMED_OUT,
}


class SocksHandler:
    """Speaks SOCKS with each visitor, dials, then joins the two sockets."""

    def __init__(self, workers: Workers, policy: Policy) -> None:
        self._workers = workers
        self._policy = policy

    def offer(self, visit: Visit) -> None:
        conn = visit.accept_pair()
        if conn is None:
            return
        conn.setblocking(False)
        try:
            if not self._workers.services.run(self._serve(visit, conn)):
                raise ListenerClosed("the tunnel is closed")
        except (ListenerClosed, OSError) as error:
            conn.close()
            visit.fail(error)

    def close(self) -> None:
        """Nothing to end: the connections are reset by the listener."""

    async def _serve(self, visit: Visit, conn: socket.socket) -> None:
        found = None
        try:
            found = await self._find(visit, conn)
        except SocksError as error:
            visit.note_failure(f"SOCKS: {error}")
            await _turn_away(conn, error.answer)
        except OSError as error:  # the visitor is gone
            log.debug("no request: visit=%s error=%s", visit, error)
        finally:
            if found is None:
                conn.close()
        if found is not None:
            self._join(visit, conn, found)

    async def _find(self, visit: Visit, conn: socket.socket) -> socket.socket | None:
        """Return the connection that the visitor wants; None: it went away."""
        parser = SocksParser()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                while parser.target is None:
                    data = await loop.sock_recv(conn, parser.wanted)
                    if not data:
                        return None
                    await loop.sock_sendall(conn, parser.feed(data))
        except TimeoutError:
            raise SocksError("the visitor did not say where to go") from None
        target = parser.target
        if not self._policy.permits(target.host, target.port):
            raise SocksError(
                f"permit_open does not allow {target}", parser.answer(Reply.NOT_ALLOWED)
            )
        result = await self._dial(target)
        if isinstance(result, OSError):
            reason = result.strerror or str(result)
            # A name that does not exist has no errno of the system.
            reply = _REPLIES.get(result.errno or 0, Reply.HOST_UNREACHABLE)
            raise SocksError(
                f"cannot connect to {target}: {reason}", parser.answer(reply)
            )
        try:
            await loop.sock_sendall(conn, parser.answer(Reply.GRANTED))
        except BaseException:
            result.close()
            raise
        log.info("visit=%s target=%s", visit, target)
        return result

    async def _dial(self, target: TcpTarget) -> socket.socket | OSError:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[socket.socket | OSError] = loop.create_future()

        def take(result: socket.socket | OSError) -> None:
            if not future.done():
                future.set_result(result)
            elif isinstance(result, socket.socket):
                result.close()

        def dialled(result: socket.socket | OSError) -> None:
            try:
                loop.call_soon_threadsafe(take, result)
            except RuntimeError:  # the loop is closed
                if isinstance(result, socket.socket):
                    result.close()

        self._workers.dialler.dial(target, self._policy.connect_timeout_s, dialled)
        return await future

    def _join(
        self, visit: Visit, conn: socket.socket, target_sock: socket.socket
    ) -> None:
        def ended(end: PairEnd) -> None:
            if end.error is not None:
                visit.break_off(end.error)

        pair = self._workers.pairs.join_sockets(conn, target_sock, ended)
        if pair is None:
            return

        def channel_ended(end: RelayEnd) -> None:
            if end.reason != "closed":
                pair.reset()

        visit.add_end_callback(channel_ended)


async def _turn_away(conn: socket.socket, answer: bytes) -> None:
    """Give the answer, say that nothing follows, and let the visitor read that."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # TimeoutError is one; or the visitor is gone
        async with asyncio.timeout(LINGER_S):
            await loop.sock_sendall(conn, answer)
            conn.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(conn, 4096):
                pass
