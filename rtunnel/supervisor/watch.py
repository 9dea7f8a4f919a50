"""Notice that a file changed, however its writer went about it.

Editors write a new file and rename it, configuration management swaps a symbolic link
above it: so what is watched is the folder, and whatever happens there, the content
decides.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger("rtunnel.supervisor.watch")

JOIN_LIMIT_S: Final = 5.0
LOOK_ANYWAY_MS: Final = 5000


class FileWatch:
    """Calls `on_change` when the content of a file is another one. Any thread."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path.absolute()
        self._on_change = on_change
        self._stop = threading.Event()
        self._content = _content(self._path)
        self._thread = threading.Thread(
            target=self._run, name="rtunnel-watch", daemon=True
        )

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Watch no more. Waits for the thread, well below a second."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_LIMIT_S)

    def _run(self) -> None:
        from watchfiles import watch  # compiled, and `verify` does without

        folders = {self._path.parent, self._path.resolve().parent}
        try:
            for _ in watch(
                *folders,
                watch_filter=None,
                recursive=False,
                stop_event=self._stop,
                # Not every file system tells of changes; and some come too early.
                yield_on_timeout=True,
                rust_timeout=LOOK_ANYWAY_MS,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                self._look()
        except Exception as error:
            # No inotify watches left, or the folder is gone.
            log.warning(
                "%s is not watched any more (%s): after a change, send SIGHUP",
                self._path,
                error,
            )

    def _look(self) -> None:
        content = _content(self._path)
        # A file that is not there right now is about to be replaced.
        if content is not None and content != self._content:
            self._content = content
            self._on_change()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
