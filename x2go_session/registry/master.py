"""Which of a profile's sessions has the shared folders: one at a time, the master.

A desktop, or a session of published applications, takes that over from a session of a
single application; nothing takes it over from them.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, Protocol

from x2go_session.session import SessionType

_WITH_FOLDERS: Final = frozenset({SessionType.DESKTOP, SessionType.PUBLISHED})


class Sharer(Protocol):
    """What is asked of a session here."""

    @property
    def is_shown(self) -> bool:
        """Whether it runs here."""

    @property
    def can_share(self) -> bool:
        """Whether folders can be shared with it."""

    @property
    def shared_folders(self) -> list[Path]:
        """The folders that are."""

    @property
    def kind(self) -> SessionType:
        """Its kind."""

    def share(self, folder: Path) -> None:
        """Share one."""

    def unshare(self, folder: Path) -> None:
        """Share it no more."""


class Mastership:
    """The master of one profile. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._master: Sharer | None = None

    @property
    def master(self) -> Sharer | None:
        """The master, as long as it runs here. Never blocks."""
        master = self._master
        return master if master is not None and master.is_shown else None

    @staticmethod
    def yields(old: SessionType, new: SessionType) -> bool:
        """Whether a session of one kind leaves the folders to one of another."""
        return new in _WITH_FOLDERS and old not in _WITH_FOLDERS

    def take(self, session: Sharer) -> None:
        """Make a session the master, and move the folders to it. Blocks.

        Raises what sharing a folder raises, after the others.
        """
        with self._lock:
            old, self._master = self._master, session
        if old is None or old is session or not session.can_share:
            return
        for folder in old.shared_folders:
            old.unshare(folder)
            session.share(folder)
