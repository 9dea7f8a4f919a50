"""Serves a broker over HTTP or HTTPS, until it is told to end; uvicorn does."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

from rtunnel.errors import ConfigError
from x2go_session.broker.server.application import make_application
from x2go_session.broker.server.broker import Broker
from x2go_session.broker.server.upkeep import Upkeep

log = logging.getLogger("x2go_session.broker")

# Of requests that run when it is told to end.
GRACE_S: Final = 10
BACKLOG: Final = 512


def serve(
    broker: Broker,
    host: str,
    port: int,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    proxies: str = "",
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the URL.

    `proxies`: whose word counts on the address of a client (X-Forwarded-For). Blocks;
    main thread. Raises `ConfigError` when the address or the certificate is no good.
    """
    sock = _listen(host, port)
    try:
        config = uvicorn.Config(
            _with_upkeep(broker),
            http="h11",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies or None,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"certificate {certificate}, key {key}: {error}"
            ) from None
        scheme = "https" if certificate else "http"
        name = f"[{host}]" if ":" in host else host
        ready(f"{scheme}://{name}:{sock.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[sock])
    finally:
        sock.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(
            (str(address[0]), int(address[1])), family=family, backlog=BACKLOG
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _with_upkeep(broker: Broker) -> Starlette:
    upkeep = Upkeep(broker)

    @contextlib.asynccontextmanager
    async def life(app: object) -> AsyncIterator[None]:
        upkeep.start()
        try:
            yield
        finally:
            upkeep.stop()

    return make_application(broker, life)
