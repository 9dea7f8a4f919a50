"""Serves the files of a folder by HTTP, to be read: with the server of the library.

Nothing outside of the folder is served, and nothing whose name begins with a dot:
keys, settings and histories have such names. A link is followed if it stays inside.
"""

from __future__ import annotations

import html
import io
import os
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, unquote

from rtunnel.errors import ConfigError
from rtunnel.services import FolderService

if TYPE_CHECKING:
    from rtunnel.tunnel.handlers import Visitor

# A browser keeps a connection for the next request; nginx waits as long.
KEEP_ALIVE_S: Final = 75.0
# What SimpleHTTPRequestHandler sends for a folder, where it is there.
_INDEX: Final = ("index.html", "index.htm")
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<ul>
{rows}</ul>
</body>
</html>
"""


def serve_folder(
    service: FolderService,
) -> Callable[[socket.socket, Visitor], None]:
    """Return a function that serves one visitor. Raises `ConfigError`."""
    root = Path(os.path.expanduser(service.path))
    try:
        root = root.resolve(strict=True)
        os.scandir(root).close()
    except OSError as error:
        raise ConfigError(
            f"cannot serve the folder {service.path!r}: {error.strerror}"
        ) from None

    def serve(conn: socket.socket, visitor: Visitor) -> None:
        try:
            # It asks for a server that is not used, and has one for a type only.
            _Request(conn, (visitor.address, visitor.port), cast(Any, None), root=root)
        except (ConnectionError, TimeoutError):
            return  # a visitor went away in mid-file, as visitors do

    return serve


class _Request(SimpleHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    timeout = KEEP_ALIVE_S
    server_version = "rtunnel"
    sys_version = ""

    def __init__(
        self, conn: socket.socket, visitor: tuple[str, int], server: Any, *, root: Path
    ) -> None:
        self._root = root
        super().__init__(conn, visitor, server, directory=str(root))

    def send_head(self) -> Any:
        """Answer a request up to the content."""
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what follows would be taken for a request
        return super().send_head()

    def translate_path(self, path: str) -> str:
        """Return the file that a path means, or one that does not exist."""
        plain = unquote(path.partition("?")[0].partition("#")[0])
        if "\0" in plain:
            return self._nowhere()
        found = super().translate_path(path)
        looked_at = [found, *(os.path.join(found, name) for name in _INDEX)]
        if all(map(self._is_served, looked_at)):
            return found
        return self._nowhere()

    def list_directory(self, path: str | os.PathLike[str]) -> io.BytesIO | None:
        """Answer with the names that a folder holds, as far as they are served."""
        folder = Path(path)
        try:
            entries = sorted(filter(self._is_served, folder.iterdir()))
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        names = [entry.name + ("/" if entry.is_dir() else "") for entry in entries]
        rows = "".join(
            f'<li><a href="./{quote(name, errors="surrogateescape")}">'
            f"{html.escape(name)}</a></li>\n"
            for name in names
        )
        title = html.escape(f"/{folder.relative_to(self._root)}".replace("/.", "/"))
        page = _PAGE.format(title=title, rows=rows).encode(errors="replace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return io.BytesIO(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: what is asked for is payload."""

    def _is_served(self, path: str | Path) -> bool:
        """Return whether a path may be served, if there is a file."""
        for inside in (Path(os.path.normpath(path)), Path(path).resolve()):
            if not inside.is_relative_to(self._root):
                return False
            parts = inside.relative_to(self._root).parts
            if any(part.startswith(".") for part in parts):
                return False
        # A pipe would keep whoever opens it; what is not there is found out later.
        return inside.is_file() or inside.is_dir() or not inside.exists()

    def _nowhere(self) -> str:
        return str(self._root / "\ufffd" / "nowhere")
