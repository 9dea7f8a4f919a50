"""`rtunnel demo`: a gateway, a web server and a tunnel between them, in one process.

Nothing is faked: the gateway is the SSH server that `rtunnel` ships, keys and
known_hosts are files, every connection is TCP. Only loopback is used.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import click

from rtunnel._version import __version__
from rtunnel.cli import logs
from rtunnel.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from rtunnel import Tunnel

LOOPBACK: Final = "127.0.0.1"
USER: Final = "demo"
MEGABYTE: Final = 1_000_000
CHUNK_BYTES: Final = 1 << 18
# Of prime length, so that bytes which are lost, doubled or swapped by whole packets
# or buffers do not fall onto equal ones.
PATTERN: Final = os.urandom(1_000_003)
TIMEOUT_S: Final = 60.0

PAGE: Final = """\
Hello through the tunnel!

You asked the gateway. The answer came from a web server on the other side
of one SSH connection, which was made from here, not from there.
"""


@click.command(short_help="Show a reverse tunnel at work, on this machine alone.")
@click.option(
    "--megabytes",
    type=click.IntRange(1, 100_000),
    default=256,
    show_default=True,
    help="How much to move through the tunnel, in each direction.",
)
@click.option("-v", "verbosity", count=True, help="Say more; up to -vvv.")
def demo(megabytes: int, verbosity: int) -> ExitStatus:
    """Show a reverse tunnel at work, on this machine alone.

    Starts the embedded gateway and a small web server, opens a reverse tunnel between
    them, fetches a page through it, moves bulk data through it in both directions and
    compares every byte.
    """
    import rtunnel
    from rtunnel.gateway import Gateway

    logs.show(verbosity, quiet=False)
    click.secho(f"rtunnel {__version__}: a reverse tunnel on this machine", bold=True)
    click.echo()
    with TemporaryDirectory(prefix="rtunnel-demo-") as name, _web_server() as web_port:
        folder = Path(name)
        key_file, public_key = _make_key(folder)
        known_hosts = folder / "known_hosts"
        with Gateway(listen=(LOOPBACK, 0), authorized_keys=[public_key]) as gateway:
            known_hosts.write_text(gateway.known_hosts_line())
            _say("gateway", f"{LOOPBACK}:{gateway.port}, an SSH server")
            _say("web server", f"{LOOPBACK}:{web_port}, the target")
            with rtunnel.connect(
                f"{USER}@{LOOPBACK}:{gateway.port}",
                identity_files=[key_file],
                known_hosts=known_hosts,
                host_key_policy="yes",
                config_file="none",
                agent=False,
            ) as tunnel:
                _say("connected", f"as {USER}, with a key; host key verified")
                _say("backend", f"{tunnel.backend}: {tunnel.backend_reason}")
                port = _show_page(tunnel, web_port)
                _show_bulk(tunnel, megabytes * MEGABYTE)
            _see_released(port)
    click.secho("\nIt works.", fg="green", bold=True)
    return ExitStatus.ENDED


def _say(what: str, text: str) -> None:
    click.echo(f"  {click.style(what.ljust(14), fg='cyan')} {text}")


def _make_key(folder: Path) -> tuple[Path, str]:
    """Write a new private key as ssh-keygen does; return its file and public line."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    path = folder / "id_ed25519"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return path, public.decode()


# -- a page ----------------------------------------------------------------------------


class _Page(BaseHTTPRequestHandler):
    """Answer every GET with the page."""

    def do_GET(self) -> None:  # the name is http.server's
        body = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; the demo tells what happens."""


@contextmanager
def _web_server() -> Iterator[int]:
    with ThreadingHTTPServer((LOOPBACK, 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, name="web server")
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _show_page(tunnel: Tunnel, web_port: int) -> int:
    """Open a tunnel to the web server and fetch a page through it; return its port."""
    target = f"{LOOPBACK}:{web_port}"
    listener = tunnel.listen(0, to=target)
    _say("listening", f"on the gateway's port {listener.port} -> {target}")
    click.echo(f"\n  GET http://{LOOPBACK}:{listener.port}/ says:\n")
    connection = http.client.HTTPConnection(LOOPBACK, listener.port, TIMEOUT_S)
    connection.request("GET", "/")
    response = connection.getresponse()
    page = response.read().decode()
    connection.close()
    if response.status != 200 or page != PAGE:
        raise click.ClickException(f"the page came back as {response.status}, {page!r}")
    for line in page.splitlines():
        click.echo(f"    | {line}")
    click.echo()
    return listener.port


# -- bulk data -------------------------------------------------------------------------


def _show_bulk(tunnel: Tunnel, size_bytes: int) -> None:
    with _target(_receive_and_confirm, size_bytes) as target:
        listener = tunnel.listen(0, to=target)
        _show_rate("to the target", size_bytes, _upload, listener.port)
    with _target(_send, size_bytes) as target:
        listener = tunnel.listen(0, to=target)
        _show_rate("to the visitor", size_bytes, _download, listener.port)


def _show_rate(
    what: str, size_bytes: int, move: Callable[[socket.socket, int], None], port: int
) -> None:
    begin = time.monotonic()
    with socket.create_connection((LOOPBACK, port), TIMEOUT_S) as visitor:
        move(visitor, size_bytes)
    seconds = time.monotonic() - begin
    megabytes = size_bytes // MEGABYTE
    rate = click.style(f"{megabytes / seconds:.0f} MB/s", bold=True)
    _say(what, f"{megabytes} MB in {seconds:.2f} s, {rate}, every byte compared")


def _upload(visitor: socket.socket, size_bytes: int) -> None:
    _send(visitor, size_bytes)
    visitor.shutdown(socket.SHUT_WR)
    answer = visitor.recv(1)
    if answer != b"+":
        raise click.ClickException("what arrived at the target is not what was sent")


def _download(visitor: socket.socket, size_bytes: int) -> None:
    if not _receive(visitor, size_bytes):
        raise click.ClickException("what arrived at the visitor is not what was sent")


def _send(sock: socket.socket, size_bytes: int) -> None:
    """Send that much of the endless repetition of the pattern."""
    pattern = memoryview(PATTERN)
    while size_bytes > 0:
        sock.sendall(pattern[:size_bytes])
        size_bytes -= len(pattern)


def _receive(sock: socket.socket, size_bytes: int) -> bool:
    """Read to the end; return whether exactly what `_send` sends came."""
    expected = PATTERN + PATTERN[:CHUNK_BYTES]
    chunk = bytearray(CHUNK_BYTES)
    received = 0
    same = True
    while count := sock.recv_into(chunk):
        begin = received % len(PATTERN)
        same = same and chunk[:count] == expected[begin : begin + count]
        received += count
    return same and received == size_bytes


def _receive_and_confirm(sock: socket.socket, size_bytes: int) -> None:
    sock.sendall(b"+" if _receive(sock, size_bytes) else b"-")


@contextmanager
def _target(
    serve: Callable[[socket.socket, int], None], size_bytes: int
) -> Iterator[str]:
    """Serve one TCP connection on a thread; yield the address to be dialled."""

    def accept_one() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT_S)
            serve(connection, size_bytes)

    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(TIMEOUT_S)
        thread = threading.Thread(target=accept_one, name="bulk target", daemon=True)
        thread.start()
        yield f"{LOOPBACK}:{server.getsockname()[1]}"
        thread.join(TIMEOUT_S)


def _see_released(port: int) -> None:
    """See that nothing listens on the gateway's port any more."""
    try:
        socket.create_connection((LOOPBACK, port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        _say("closed", "every port is free again")
    else:
        raise click.ClickException(f"port {port} still listens after the tunnel closed")
