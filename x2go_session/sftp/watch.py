"""What the server does to the files of a shared folder, told as it happens.

There is nothing to poll and no inotify: every change that comes over the mount passes
through our own SFTP server, which knows when a file that was written is closed.
"""

from __future__ import annotations

from pathlib import Path


class FolderWatch:
    """Gets the changes of one shared folder; override what is of interest.

    Called on the thread that serves the mount, after the change and before the server
    hears that it was made: so it may not take long, and must not wait for the server.
    What it raises is logged. Paths are absolute paths on this side, below the folder
    as it was shared; the names in them are the server's choice.
    """

    def on_close(self, path: Path, written: bool) -> None:
        """A file was closed. `path` is the name it was opened by, or got since.

        `written` tells whether it was written, truncated or created through this
        handle: it is complete now, unless somebody else has it open, too.
        """

    def on_rename(self, path_from: Path, path_to: Path) -> None:
        """A file or folder of this share has a new name in it."""

    def on_remove(self, path: Path) -> None:
        """A file, link or folder is gone."""
