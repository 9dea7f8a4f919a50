"""The state in PostgreSQL: for brokers on several machines.

A statement that finds a row locked by another waits for that one's end and looks at the
row again (READ COMMITTED), so that of two who delete a row one is told so.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from x2go_session.broker.server.errors import StateError
from x2go_session.broker.server.state import Connection, create_tables

# How long a connection may take; and how many a broker has.
PATIENCE_S: Final = 5
MOST_CONNECTIONS: Final = 8
# Any number: brokers that start at once create the tables one after the other.
TABLES_LOCK: Final = 0x7832676F
_PASSWORD: Final = re.compile(r"(password\s*=\s*)\S+|(://[^:/@\s]*):[^@\s]*@")


class PostgresDatabase:
    """A database of PostgreSQL, by the URL of libpq."""

    def __init__(self, url: str) -> None:
        try:
            # On a connection of its own: it says why there is none, and at once.
            with psycopg.connect(url, connect_timeout=PATIENCE_S) as connection:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (TABLES_LOCK,))
                create_tables(_Translated(connection))
            self._pool = ConnectionPool(
                url,
                min_size=0,
                max_size=MOST_CONNECTIONS,
                timeout=PATIENCE_S,
                # The server may have been started anew since the last use.
                check=ConnectionPool.check_connection,
                open=True,
            )
        except psycopg.Error as error:
            raise StateError(_without_password(f"PostgreSQL: {error}")) from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction on a connection of the pool."""
        try:
            with self._pool.connection() as connection:
                yield _Translated(connection)
        except (psycopg.Error, PoolTimeout) as error:
            raise StateError(_without_password(f"PostgreSQL: {error}")) from None

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()


class _Translated:
    """A connection that takes `?` for a value, as that of SQLite does."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Any = ()) -> Any:
        return self._connection.execute(statement.replace("?", "%s").encode(), values)


def _without_password(text: str) -> str:
    return _PASSWORD.sub(r"\1\2:***@", " ".join(text.split()))
