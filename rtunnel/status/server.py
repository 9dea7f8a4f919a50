"""Answer over HTTP how this process does: metrics, health, JSON and a page.

Only for this machine: the answers need no password, so that nothing but loopback or a
Unix socket is served on, and a browser is answered only if it asked for this machine
by name (else any web site could read it by rebinding its own name).

One thread takes connections, each of them gets its own, and one request. What may be
asked at the same time is limited, and everybody has to be quick.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from rtunnel.errors import ConfigError
from rtunnel.status.model import ReadyCheck, StatusSource, not_ready, to_json

if TYPE_CHECKING:
    from rtunnel.status.metrics import Metrics

log = logging.getLogger("rtunnel.status")

# Requests at the same time; each is a thread. A page, two scrapers and some probes
# need a handful.
MAX_REQUESTS: Final = 32
# For the whole of one request. A self-test of many listeners may need most of it.
REQUEST_TIMEOUT_S: Final = 30.0
# How late it may be noticed that a request takes too long.
SWEEP_S: Final = 1.0
# accept() failed for want of descriptors: try again after that.
ACCEPT_PAUSE_S: Final = 0.1

TEXT: Final = "text/plain; charset=utf-8"
# The page runs its own script and nothing else, and is shown in nobody's frame.
SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

_Answer = tuple[HTTPStatus, str, bytes]


class StatusServer:
    """Serves one process's status, from the making of it to `close`.

    On an address of loopback and a port (0: any that is free), or on `sock`, which
    listens already and is owned from here on. `ready_check` is asked, in addition to
    the status itself, what is not ready; it may block for a few seconds. Raises
    `ConfigError`. Every method may be called from any thread. As a context manager it
    closes at the end of the block.
    """

    def __init__(
        self,
        source: StatusSource,
        address: str = "127.0.0.1",
        port: int = 0,
        ready_check: ReadyCheck | None = None,
        *,
        sock: socket.socket | None = None,
    ) -> None:
        self._source = source
        self._ready_check = ready_check
        self._metrics: Metrics | None = None
        self._closing = threading.Event()
        self._socket = listen_on_loopback(address, port) if sock is None else sock
        self._http = _Http(self._socket, self._answer)
        self._thread = threading.Thread(
            target=self._run, name="rtunnel-status", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port; 0 for a Unix socket."""
        if self._socket.family == socket.AF_UNIX:
            return 0
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where a browser finds the page; empty for a Unix socket."""
        if self._socket.family == socket.AF_UNIX:
            return ""
        host = str(self._socket.getsockname()[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def close(self) -> None:
        """Serve no more. Waits for the thread that takes connections."""
        if self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> StatusServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._http.handle_request()

    def _answer(self, path: str, accept: str) -> _Answer:
        """Return what a GET of this path is answered with. On a request's thread."""
        if path == "/metrics":
            body, content_type = self._measure().render(accept)
            return HTTPStatus.OK, content_type, body
        if path == "/healthz":
            self._source()  # raises if the process does not work
            return HTTPStatus.OK, TEXT, b"ok\n"
        if path == "/readyz":
            return self._readiness()
        if path == "/status":
            text = json.dumps(to_json(self._source()), indent=2)
            return HTTPStatus.OK, "application/json", text.encode() + b"\n"
        if path in _FILES:
            name, content_type = _FILES[path]
            page = files("rtunnel.status").joinpath("web", name).read_bytes()
            return HTTPStatus.OK, content_type, page
        known = " ".join(
            sorted((*_FILES, "/healthz", "/metrics", "/readyz", "/status"))
        )
        return HTTPStatus.NOT_FOUND, TEXT, f"there is: {known}\n".encode()

    def _measure(self) -> Metrics:
        # Loaded with the first scrape: most processes are never scraped.
        if self._metrics is None:
            from rtunnel.status.metrics import Metrics

            self._metrics = Metrics(self._source)
        return self._metrics

    def _readiness(self) -> _Answer:
        missing = not_ready(self._source())
        if not missing and self._ready_check is not None:
            missing = list(self._ready_check())
        if missing:
            text = "".join(f"{line}\n" for line in ("not ready", *missing))
            return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, text.encode()
        return HTTPStatus.OK, TEXT, b"ready\n"


def listen_on_loopback(address: str, port: int) -> socket.socket:
    """Listen on a port of this machine that nobody else reaches.

    Raises `ConfigError` if the address is another one, or taken.
    """
    if address == "localhost":
        address = "127.0.0.1"
    try:
        ip = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback:
        raise ConfigError(
            f"the status is served on loopback only, not on {address!r}: it asks for "
            "no password; give 127.0.0.1:PORT, and put a proxy with a login before it"
        )
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    try:
        return socket.create_server((str(ip), port), family=family, backlog=64)
    except OSError as error:
        raise ConfigError(
            f"cannot serve the status on {address}:{port}: {error.strerror}; give "
            "another port, or 0 for any that is free"
        ) from error


class _Http(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, sock: socket.socket, answer: Callable[[str, str], _Answer]
    ) -> None:
        self.address_family = sock.family
        super().__init__(("", 0), _Request, bind_and_activate=False)
        self.socket.close()  # its own, which it has made in any case
        self.socket = sock
        self.answer = answer
        self._free = threading.Semaphore(MAX_REQUESTS)
        # Until when each request has to be done. Protected by _lock.
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
                time.sleep(ACCEPT_PAUSE_S)
            raise

    def handle_request(self) -> None:
        # Sleeps for ever while there is nothing to look after.
        self.timeout = SWEEP_S if self._deadlines else None
        super().handle_request()
        self._end_late_ones()

    def _end_late_ones(self) -> None:
        """Cut off those who take too long; their threads end by that."""
        now_s = time.monotonic()
        with self._lock:
            for request, deadline_s in self._deadlines.items():
                if now_s >= deadline_s:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._deadlines[request] = time.monotonic() + REQUEST_TIMEOUT_S
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def shutdown_request(self, request: Any) -> None:
        self._forget(request)
        super().shutdown_request(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            if self._deadlines.pop(request, None) is not None:
                self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client went away, or was too slow.
        log.debug("a status request failed", exc_info=True)


class _Request(BaseHTTPRequestHandler):
    server: _Http
    server_version = "rtunnel"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._asks_for_this_machine():
            self._send(
                HTTPStatus.MISDIRECTED_REQUEST,
                TEXT,
                b"ask for this machine by its address\n",
            )
            return
        path = self.path.partition("?")[0]
        try:
            answer = self.server.answer(path, self.headers.get("Accept", ""))
        except Exception:
            log.exception("the status cannot be told: path=%s", path)
            text = b"the status cannot be told; the log says why\n"
            answer = HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, text
        self._send(*answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _asks_for_this_machine(self) -> bool:
        if self.server.address_family == socket.AF_UNIX:
            return True
        host = self.headers.get("Host", "").strip().lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("status request: %s", (format % args).encode("unicode_escape"))

    def address_string(self) -> str:
        return str(self.client_address)
