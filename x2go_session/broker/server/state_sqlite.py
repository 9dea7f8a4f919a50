"""The state in a file of SQLite: for one machine, with any number of processes.

Each thread has a connection of its own. A transaction takes the lock for writing when
it begins: one that reads first and writes later could be refused in between.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from x2go_session.broker.server.errors import StateError
from x2go_session.broker.server.state import Connection, create_tables

# How long others may hold the lock; they hold it for milliseconds.
PATIENCE_S: Final = 30.0
# DELETE ... RETURNING.
OLDEST: Final = (3, 35, 0)


class SqliteDatabase:
    """A file of SQLite, made with mode 0600 if it is not there."""

    def __init__(self, path: str) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise StateError(
                f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed"
            )
        self._path = Path(path)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with self.transaction() as connection:
            create_tables(connection)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction on the connection of this thread."""
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
        except sqlite3.Error as error:
            raise StateError(f"the state in {self._path}: {error}") from error

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if found is None:
            found = sqlite3.connect(
                self._path,
                timeout=PATIENCE_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._own.connection = found
            with self._lock:
                self._all.append(found)
        return found
