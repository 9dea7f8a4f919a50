"""The asyncio face: the same tunnels, awaited, and visitors as streams.

    from rtunnel import aio

    async with aio.connect("user@host") as tunnel:
        listener = await tunnel.listen(8080)
        async for visitor in listener:
            async with visitor:
                visitor.writer.write(await visitor.reader.readline())

It is thin: what waits for the server runs on a thread of the loop's executor, bytes
are moved by the backend as ever, and handlers that are `async def` run on this loop.
Use each object on the loop that it was made on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from rtunnel.errors import ConnectionLost, ListenerClosed
from rtunnel.ssh.connection import REQUEST_TIMEOUT_S
from rtunnel.stats import ListenerStats, TunnelStats
from rtunnel.tunnel import AcceptQueue
from rtunnel.tunnel import Listener as BlockingListener
from rtunnel.tunnel import Tunnel as BlockingTunnel
from rtunnel.tunnel import Visitor as BlockingVisitor
from rtunnel.tunnel.handlers import ACCEPT_BACKLOG

if TYPE_CHECKING:
    from rtunnel.addresses import Bind, Destination, Target
    from rtunnel.policy import Network, Priority
    from rtunnel.ssh.options import ConnectOptions
    from rtunnel.tunnel.handlers import HandlerSpec

__all__ = ["Connecting", "Listener", "Tunnel", "Visitor", "connect"]

_T = TypeVar("_T")


class ListenOptions(TypedDict, total=False):
    """What `Tunnel.listen` takes by name, here and in `rtunnel.Tunnel`."""

    name: str | None
    timeout_s: float | None
    diagnose: bool
    connect_timeout_s: float
    priority: Priority
    allow: Iterable[str | Network]
    deny: Iterable[str | Network]
    max_connections: int | None
    rate_bytes_per_s: int | None
    idle_timeout_s: float | None
    proxy_protocol: Literal[1, 2] | None
    permit_open: Iterable[str] | None


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who connected to the port on the server, and the streams to talk to it.

    `async with` closes the connection at the end of the block.
    """

    address: str
    port: int
    listener: Listener
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def close(self) -> None:
        """Close the connection, behind what was written."""
        self.writer.close()
        with contextlib.suppress(OSError):  # it was reset
            await self.writer.wait_closed()

    async def __aenter__(self) -> Visitor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class Listener:
    """One port or socket path that the server listens on. Made by `Tunnel.listen`.

    Without a handler it is an iterator over its visitors: `async for`, or `accept`.
    `async with` closes it at the end of the block.
    """

    def __init__(
        self, listener: BlockingListener, queue: AcceptQueue | None, news: asyncio.Event
    ) -> None:
        self.blocking = listener
        self._queue = queue
        self._news = news

    def __repr__(self) -> str:
        return f"<aio {self.blocking!r}>"

    @property
    def port(self) -> int:
        """The port: the one the server chose if 0 was asked; 0 for a socket path."""
        return self.blocking.port

    @property
    def address(self) -> str:
        """The address as requested, or the socket path."""
        return self.blocking.address

    @property
    def name(self) -> str:
        """The name it was given, or where it listens."""
        return self.blocking.name

    def pause(self) -> None:
        """Turn visitors away, and reset those that are there. Never blocks."""
        self.blocking.pause()

    def resume(self) -> None:
        """Take visitors again. Never blocks."""
        self.blocking.resume()

    def stats(self) -> ListenerStats:
        """Return the counters up to now. Never blocks."""
        return self.blocking.stats()

    async def accept(self) -> Visitor:
        """Wait for a visitor. Raises `ListenerClosed`, `ConnectionLost`.

        Only for a listener without a handler; RuntimeError else. For a time limit
        use `asyncio.timeout`: no visitor is lost by it.
        """
        if self._queue is None:
            raise RuntimeError(f"visitors of {self.blocking} go to its handler")
        while True:
            self._news.clear()
            try:
                conn, visitor = self.blocking.accept(timeout_s=0)
            except TimeoutError:
                await self._news.wait()
            else:
                return await self._open(conn, visitor)

    async def _open(self, conn: socket.socket, visitor: BlockingVisitor) -> Visitor:
        # Does not wait, so that the visitor cannot be lost in between.
        reader, writer = await asyncio.open_unix_connection(sock=conn)
        return Visitor(visitor.address, visitor.port, self, reader, writer)

    async def __aiter__(self) -> AsyncIterator[Visitor]:
        """Yield visitors until it is closed here. Raises `ConnectionLost`."""
        while True:
            try:
                visitor = await self.accept()
            except ListenerClosed:
                return
            except ConnectionLost:
                if self.blocking.tunnel.connection.closed_here:
                    return
                raise
            yield visitor

    async def close(self, drain_s: float = 0.0) -> None:
        """Listen no more; the port is free when this returns."""
        await _in_thread(lambda: self.blocking.close(drain_s))

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class Tunnel:
    """Reverse tunnels over one SSH connection, on the running loop.

    Takes an `rtunnel.Tunnel` that nothing listens on yet, and owns it: `close` closes
    it. `async with` closes at the end of the block.
    """

    def __init__(self, tunnel: BlockingTunnel) -> None:
        self.blocking = tunnel
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ConnectionLost] = self._loop.create_future()
        tunnel.use_loop(self._loop)
        tunnel.connection.add_end_callback(self._on_end)

    def __repr__(self) -> str:
        return f"<aio {self.blocking!r}>"

    @property
    def backend(self) -> str:
        """What moves the bytes: "engine", "pump" or "python"."""
        return self.blocking.backend

    def stats(self) -> TunnelStats:
        """Return the sums over all listeners, closed ones too. Never blocks."""
        return self.blocking.stats()

    async def listen(
        self,
        bind: int | str | tuple[str, int] | Bind,
        to: HandlerSpec = None,
        *,
        backlog: int = ACCEPT_BACKLOG,
        **options: Unpack[ListenOptions],
    ) -> Listener:
        """Have the server listen; take its visitors to `to`, or yield them.

        Arguments and errors are those of `rtunnel.Tunnel.listen`. Handlers that are
        `async def` run on this loop, other functions on threads of their own.
        """
        news = asyncio.Event()
        queue: AcceptQueue | None = None
        if to is None:
            to = queue = AcceptQueue(backlog)
            queue.on_change = lambda: self._soon(news.set)
        listener = await _in_thread(
            lambda: self.blocking.listen(bind, to, **options), BlockingListener.close
        )
        return Listener(listener, queue, news)

    async def dial(
        self,
        target: str | tuple[str, int] | Target,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a target *as the server sees it*; return reader and writer.

        Arguments and errors are those of `rtunnel.Tunnel.dial`.
        """
        conn = await _in_thread(
            lambda: self.blocking.dial(target, timeout_s), socket.socket.close
        )
        return await asyncio.open_unix_connection(sock=conn)

    async def wait(self) -> None:
        """Wait until it is closed. Raises `ConnectionLost` if it ended otherwise."""
        await asyncio.shield(self._ended)
        self.blocking.wait(0)

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop listening, end the connections, close the transport."""
        await _in_thread(lambda: self.blocking.close(drain_s))

    async def __aenter__(self) -> Tunnel:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _on_end(self, lost: ConnectionLost) -> None:
        def tell() -> None:
            if not self._ended.done():
                self._ended.set_result(lost)

        self._soon(tell)

    def _soon(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)


class Connecting:
    """What `connect` returns: `async with` it, or `await` it for a `Tunnel`."""

    def __init__(self, making: Coroutine[Any, Any, Tunnel]) -> None:
        self._making = making
        self._tunnel: Tunnel | None = None

    def __await__(self) -> Any:
        return self._making.__await__()

    async def __aenter__(self) -> Tunnel:
        self._tunnel = await self._making
        return self._tunnel

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tunnel is not None:
            await self._tunnel.close()


def connect(
    destination: str | Destination, **options: Unpack[ConnectOptions]
) -> Connecting:
    """Connect to an SSH server: `async with connect(...) as tunnel`, or await it.

    Arguments and errors are those of `rtunnel.connect`. A task that is cancelled
    meanwhile does not wait; the connection is closed when it stands.
    """
    return Connecting(_connect(destination, options))


async def _connect(destination: str | Destination, options: ConnectOptions) -> Tunnel:
    from rtunnel import connect as connect_blocking

    return Tunnel(
        await _in_thread(
            lambda: connect_blocking(destination, **options), BlockingTunnel.close
        )
    )


async def _in_thread(
    function: Callable[[], _T], undo: Callable[[_T], object] | None = None
) -> _T:
    """Run what blocks on a thread; if nobody waits for its result, undo it there."""
    lock = threading.Lock()
    results: list[_T] = []
    given_up = False

    def run() -> _T:
        result = function()
        with lock:
            results.append(result)
            nobody_waits = given_up
        if nobody_waits and undo is not None:
            undo(result)
        return result

    try:
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(None, run)
        )
    except asyncio.CancelledError:
        with lock:
            given_up = True
            late = list(results)
        if late and undo is not None:  # it was there, but not yet told
            threading.Thread(target=undo, args=(late[0],), daemon=True).start()
        raise
