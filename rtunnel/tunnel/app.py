"""Serves an ASGI or WSGI application: uvicorn, on connections that come by the tunnel.

uvicorn runs without a listening socket, on a thread and a loop of its own; it is given
each connection, and told who the visitor is. A WSGI application runs behind a2wsgi.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from rtunnel.errors import ConfigError, ListenerClosed
from rtunnel.services import AppService
from rtunnel.tunnel.workers import Workers

if TYPE_CHECKING:
    from rtunnel.tunnel.handlers import Visitor
    from rtunnel.tunnel.visit import Visit

log = logging.getLogger("rtunnel.tunnel.app")

# uvicorn waits for the application's own start without end. gunicorn gives up a worker
# after 30 s.
START_TIMEOUT_S: Final = 30.0
# The connections have been reset by then: only their requests may still run.
STOP_TIMEOUT_S: Final = 1


class AppHandler:
    """Runs one application for all visitors of a listener.

    Waits for the application's start. Raises `ConfigError` if there is none, if it
    does not start, or if what serves it is not installed.
    """

    def __init__(self, service: AppService, workers: Workers) -> None:
        self._name = str(service)
        self._server: Any = _make_server(service)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._over = False
        self._error: BaseException | None = None
        workers.start(f"rtunnel-{self._name}", self._run)
        if not self._started.wait(START_TIMEOUT_S):
            self.close()
            raise ConfigError(f"{self._name} did not start within {START_TIMEOUT_S} s")
        if self._over:
            raise ConfigError(
                f"{self._name} does not start: {self._error or 'its lifespan failed'}; "
                "the log of uvicorn.error says more"
            )

    def offer(self, visit: Visit) -> None:
        conn = visit.accept_pair()
        if conn is None:
            return
        conn.setblocking(False)
        assert self._loop is not None
        serving = self._serve(visit, conn)
        try:
            self._loop.call_soon_threadsafe(self._loop.create_task, serving)
        except RuntimeError:  # the loop is closed
            serving.close()
            conn.close()
            visit.fail(ListenerClosed(f"{self._name} has ended"))

    def close(self) -> None:
        """Have uvicorn end: it looks ten times a second. Never blocks."""
        self._server.should_exit = True

    async def _serve(self, visit: Visit, conn: socket.socket) -> None:
        server = self._server
        config = server.config

        def protocol() -> asyncio.Protocol:
            made = config.http_protocol_class(
                config=config,
                server_state=server.server_state,
                app_state=server.lifespan.state,
            )
            return _Introduced(made, visit.visitor)

        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(protocol, conn)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except (Exception, SystemExit) as error:  # uvicorn exits if it cannot start
            self._error = None if isinstance(error, SystemExit) else error
            log.debug("the application ended: target=%s", self._name, exc_info=error)
        finally:
            self._over = True
            self._started.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        serving = asyncio.ensure_future(self._server.serve(sockets=[]))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(0.01)
        if self._server.started:
            self._started.set()
        await serving


class _Introduced(asyncio.Protocol):
    """A protocol of uvicorn that takes the visitor for its peer."""

    def __init__(self, protocol: Any, visitor: Visitor) -> None:
        self._protocol = protocol
        self._visitor = visitor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand the connection over to uvicorn, which sets itself as the protocol."""
        named = _NamedTransport(transport, self._visitor)
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(named)


class _NamedTransport:
    """A transport whose peer is the visitor, and whose own end the forwarded port."""

    def __init__(self, transport: asyncio.BaseTransport, visitor: Visitor) -> None:
        self._transport = transport
        self._info: dict[str, Any] = {
            # uvicorn asks this one first; it is a socketpair, and has no names.
            "socket": None,
            "peername": (visitor.address, visitor.port),
            "sockname": visitor.listener.place_seen_from(visitor.address),
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection, as of any transport."""
        if name in self._info:
            return self._info[name]
        return self._transport.get_extra_info(name, default)


def _make_server(service: AppService) -> Any:
    try:
        uvicorn = importlib.import_module("uvicorn")
    except ImportError:
        raise ConfigError(
            f"{service} needs uvicorn: install it with `pip install 'rtunnel[app]'`"
        ) from None
    app = _load(service)
    if _is_wsgi(app):
        app = _from_wsgi(service, app)
    config = uvicorn.Config(
        app,
        http="h11",
        log_config=None,  # whoever runs us decides what is logged where
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    return uvicorn.Server(config)


def _load(service: AppService) -> Any:
    """Import the application; the current folder is looked into, as by uvicorn."""
    with contextlib.suppress(OSError):
        folder = os.getcwd()
        if folder not in sys.path and "" not in sys.path:
            sys.path.insert(0, folder)
    try:
        module = importlib.import_module(service.module)
        app: Any = reduce(getattr, service.attribute.split("."), module)
    except Exception as error:
        raise ConfigError(
            f"cannot load {service}: {type(error).__name__}: {error}"
        ) from error
    if not callable(app):
        raise ConfigError(f"{service} is not an application: it cannot be called")
    return app


def _is_wsgi(app: Callable[..., Any]) -> bool:
    """Tell by the arguments: (environ, start_response), or (scope, receive, send)."""
    called = app.__init__ if inspect.isclass(app) else app
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) - inspect.isclass(app) == 2


def _from_wsgi(service: AppService, app: Any) -> Any:
    try:
        middleware = importlib.import_module("a2wsgi")
    except ImportError:
        raise ConfigError(
            f"{service} is a WSGI application and needs a2wsgi: install it with "
            "`pip install 'rtunnel[app]'`"
        ) from None
    return middleware.WSGIMiddleware(app)
