"""What serves visitors: a target, a service, a function, or `accept()`.

A handler is offered each visit on the transport's thread and may not block there. It
decides the visit sooner or later, from any thread: it accepts with a socket that the
backend pumps from then on, or refuses. Python code always gets a real socket: one end
of a socketpair whose other end is pumped.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, get_args

from rtunnel.addresses import Target, TcpTarget, UnixTarget, parse_target
from rtunnel.errors import SHORTAGES, ListenerClosed, OpenFailureCode
from rtunnel.policy import Policy
from rtunnel.proxy_protocol import encode
from rtunnel.services import ExecService, FolderService, Service, SocksService
from rtunnel.tunnel.dialler import Dialler
from rtunnel.tunnel.workers import CoroutineRunner, Workers

if TYPE_CHECKING:
    from rtunnel.tunnel.listener import Listener
    from rtunnel.tunnel.visit import Visit

log = logging.getLogger("rtunnel.tunnel.handlers")

# Visitors that may wait for accept(): as for listen(2), where SOMAXCONN was 128.
ACCEPT_BACKLOG: Final = 128


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who connected to the port on the server, as the server tells it.

    A socket path has no origin: the address is empty and the port 0.
    """

    address: str
    port: int
    listener: Listener


AnyFunction: TypeAlias = Callable[..., Any]
# What `listen(to=...)` takes.
HandlerSpec: TypeAlias = (
    "str | tuple[str, int] | Target | Service | AnyFunction | AcceptQueue | None"
)


class Handler(Protocol):
    """Serves the visits of one listener."""

    def offer(self, visit: Visit) -> None:
        """Decide about a visit, now or later. On the transport's thread: no waiting."""

    def close(self) -> None:
        """The listener is closed. Never blocks."""


def make_handler(
    to: HandlerSpec, workers: Workers, policy: Policy, backlog: int
) -> tuple[Handler, str]:
    """Return the handler for what `listen` was given, and what to call it.

    Raises `InvalidAddress` for a target that cannot be understood, `ConfigError` for
    a service that cannot run here, TypeError for a function that takes other
    arguments, ValueError for a policy that does not go with it.
    """
    if isinstance(to, AcceptQueue):
        return to, "accept()"
    if to is None:
        _check(policy, "accept()")
        return AcceptQueue(backlog), "accept()"
    if callable(to):
        name = getattr(to, "__qualname__", type(to).__name__)
        _check(policy, "a function")
        if _is_async(to):
            takes_visitor = _takes_visitor(to, 2, "(reader, writer)")
            return AsyncHandler(to, takes_visitor, workers.loop), f"{name}()"
        return FunctionHandler(
            to, _takes_visitor(to, 1, "(conn)"), workers
        ), f"{name}()"
    target = parse_target(to)
    if isinstance(target, TcpTarget | UnixTarget):
        _check(policy, "a target", is_target=True)
        return TargetHandler(target, workers.dialler, policy), str(target)
    _check(policy, str(target), is_socks=isinstance(target, SocksService))
    return _make_service(target, workers, policy), str(target)


def _make_service(service: Service, workers: Workers, policy: Policy) -> Handler:
    # Each is loaded when it is used: most tunnels have none of them.
    if isinstance(service, SocksService):
        from rtunnel.tunnel.socks_handler import SocksHandler

        return SocksHandler(workers, policy)
    if isinstance(service, FolderService):
        from rtunnel.tunnel.folder import serve_folder

        return FunctionHandler(serve_folder(service), True, workers)
    if isinstance(service, ExecService):
        from rtunnel.tunnel.execute import ExecHandler

        return ExecHandler(service, workers)
    from rtunnel.tunnel.app import AppHandler

    return AppHandler(service, workers)


def _check(
    policy: Policy, what: str, *, is_target: bool = False, is_socks: bool = False
) -> None:
    """Refuse rules that would mean nothing: whoever gives them relies on them."""
    if policy.proxy_protocol is not None and not is_target:
        raise ValueError(f"proxy_protocol is for targets; {what} is none")
    if policy.permit_open is not None and not is_socks:
        raise ValueError(f"permit_open is for `socks`; {what} dials nothing on demand")


class TargetHandler:
    """Takes visitors to a host and port, or a Unix socket, on this side."""

    def __init__(self, target: Target, dialler: Dialler, policy: Policy) -> None:
        self._target = target
        self._dialler = dialler
        self._policy = policy

    def offer(self, visit: Visit) -> None:
        def dialled(result: socket.socket | OSError) -> None:
            if isinstance(result, socket.socket):
                try:
                    self._introduce(visit, result)
                except OSError as error:
                    result.close()
                    result = error
            if isinstance(result, OSError):
                reason = result.strerror or str(result)
                visit.refuse(
                    OpenFailureCode.RESOURCE_SHORTAGE
                    if result.errno in SHORTAGES
                    else OpenFailureCode.CONNECT_FAILED,
                    f"cannot connect to {self._target}: {reason}",
                    is_error=True,
                )
            else:
                visit.accept(result)

        self._dialler.dial(self._target, self._policy.connect_timeout_s, dialled)

    def close(self) -> None:
        """Nothing of its own: the dialler belongs to the tunnel."""

    def _introduce(self, visit: Visit, sock: socket.socket) -> None:
        """Say whose connection it is, if the target is to know.

        Nothing else has been sent on it, so that its buffer takes the header at once.
        """
        if self._policy.proxy_protocol is not None:
            visitor = visit.visitor
            here = visitor.listener.place_seen_from(visitor.address)
            source = (visitor.address, visitor.port)
            sock.sendall(encode(self._policy.proxy_protocol, source, here))


class FunctionHandler:
    """Calls `function(conn[, visitor])` for each visitor, on a thread of its own."""

    def __init__(
        self, function: AnyFunction, takes_visitor: bool, workers: Workers
    ) -> None:
        self._function = function
        self._takes_visitor = takes_visitor
        self._workers = workers

    def offer(self, visit: Visit) -> None:
        conn = visit.accept_pair()
        if conn is None:
            return
        try:
            self._workers.start(
                f"rtunnel-{visit.visitor.listener.name}",
                lambda: self._serve(visit, conn),
            )
        except RuntimeError as error:
            conn.close()
            visit.fail(error)

    def close(self) -> None:
        """Nothing to end: the connections are reset by the listener."""

    def _serve(self, visit: Visit, conn: socket.socket) -> None:
        with conn:
            try:
                if self._takes_visitor:
                    self._function(conn, visit.visitor)
                else:
                    self._function(conn)
            except Exception as error:
                visit.fail(error)


class AsyncHandler:
    """Awaits `function(reader, writer[, visitor])` for each visitor, on one loop."""

    def __init__(
        self,
        function: Callable[..., Awaitable[object]],
        takes_visitor: bool,
        loop: CoroutineRunner,
    ) -> None:
        self._function = function
        self._takes_visitor = takes_visitor
        self._loop = loop

    def offer(self, visit: Visit) -> None:
        conn = visit.accept_pair()
        if conn is None:
            return
        try:
            if not self._loop.run(self._serve(visit, conn)):
                raise ListenerClosed("the tunnel is closed")
        except (ListenerClosed, OSError) as error:
            conn.close()
            visit.fail(error)

    def close(self) -> None:
        """Nothing to end: the connections are reset by the listener."""

    async def _serve(self, visit: Visit, conn: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=conn)
        try:
            if self._takes_visitor:
                await self._function(reader, writer, visit.visitor)
            else:
                await self._function(reader, writer)
        except Exception as error:
            visit.fail(error)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError as error:
                log.debug("closing failed: chan=%s error=%s", visit, error)


class AcceptQueue:
    """Keeps visitors for `Listener.accept()`, as the kernel does behind listen(2).

    Their connections are confirmed already and what they send is buffered, up to
    what a channel's window and the socket hold.
    """

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        # Protected by _changed.
        self._changed = threading.Condition()
        self._queue: deque[tuple[Visit, socket.socket]] = deque()
        self._closed = False
        # Called when a visitor may be there, or never will: must be quick.
        self.on_change: Callable[[], object] = _nobody_cares

    def offer(self, visit: Visit) -> None:
        with self._changed:
            self._drop_aborted()
            full = len(self._queue) >= self._backlog
            if not full and not self._closed:
                conn = visit.accept_pair()
                if conn is not None:
                    self._queue.append((visit, conn))
                    self._changed.notify()
                    self.on_change()
                return
        visit.refuse(
            OpenFailureCode.RESOURCE_SHORTAGE,
            f"{self._backlog} visitors wait already: nobody calls accept()",
        )

    def take(self, timeout_s: float | None) -> tuple[socket.socket, Visitor]:
        """Wait for a visitor. Raises TimeoutError, `ListenerClosed`."""
        with self._changed:

            def ready() -> bool:
                self._drop_aborted()
                return bool(self._queue) or self._closed

            if not self._changed.wait_for(ready, timeout_s):
                raise TimeoutError(f"no visitor came within {timeout_s} s")
            if not self._queue:
                raise ListenerClosed("the listener is closed: nobody comes any more")
            visit, conn = self._queue.popleft()
        return conn, visit.visitor

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for _, conn in self._queue:
                conn.close()
            self._queue.clear()
            self._changed.notify_all()
            self.on_change()

    def _drop_aborted(self) -> None:
        """Forget visitors that were reset by `pause` while they waited."""
        for visit, conn in list(self._queue):
            if visit.aborted:
                conn.close()
                self._queue.remove((visit, conn))


def _nobody_cares() -> None:
    """Nobody waits for visitors but by `take`."""


_BY_POSITION: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


def _is_async(function: AnyFunction) -> bool:
    call = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _takes_visitor(function: AnyFunction, arguments: int, shape: str) -> bool:
    """Return whether a function is to get a visitor behind its first arguments.

    Not in a parameter that has a default, unless it says that it is a Visitor: those
    carry values of the function's own (`lambda conn, name=name: ...`).
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return False  # some built-in functions have none
    without, with_visitor = (
        _can_take(signature, count) for count in (arguments, arguments + 1)
    )
    if not (without or with_visitor):
        raise TypeError(
            f"the handler {function!r} cannot be called with {shape} or with "
            f"{shape[:-1]}, visitor)"
        )
    if not (without and with_visitor):
        return with_visitor
    named = [p for p in signature.parameters.values() if p.kind in _BY_POSITION]
    # Behind the named ones there is only *args, which takes what there is.
    return len(named) <= arguments or _is_visitor(named[arguments].annotation)


def _can_take(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _is_visitor(annotation: Any) -> bool:
    """Tell by an annotation, which may be text where annotations are not evaluated."""
    if isinstance(annotation, str):
        return re.search(rf"\b{Visitor.__name__}\b", annotation) is not None
    return annotation is Visitor or Visitor in get_args(annotation)
