"""What brokers remember: cookies, failures, choices of servers, keys put on servers.

Theory of operation. Several brokers may share one state, and a request may be answered
by any of them: so whatever must happen once is one statement of SQL that says whether
it happened. A cookie is taken by deleting its row; who gets the row back has it, and
nobody else can. A server is chosen by writing the choice down; who comes second gets
the choice of the first. Keys that are due are claimed by a broker for a time, so that
one that dies in the middle leaves them to the others.

A cookie itself is never stored, only its digest: who reads the state cannot log in.

Times are seconds since 1970, by the clock of the broker that asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol

from x2go_session.broker.server.errors import StateError

# Types that both SQLite and PostgreSQL have.
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS cookies (
        digest TEXT PRIMARY KEY, username TEXT NOT NULL, address TEXT NOT NULL,
        authenticated DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS counters (
        name TEXT PRIMARY KEY, amount INTEGER NOT NULL,
        expires DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS choices (
        username TEXT NOT NULL, profile TEXT NOT NULL, server TEXT NOT NULL,
        chosen DOUBLE PRECISION NOT NULL, PRIMARY KEY (username, profile))""",
    """CREATE TABLE IF NOT EXISTS placed_keys (
        identity TEXT PRIMARY KEY, server TEXT NOT NULL, username TEXT NOT NULL,
        file TEXT NOT NULL, placed DOUBLE PRECISION NOT NULL,
        due DOUBLE PRECISION NOT NULL)""",
)

_ANSWERED: Final = re.compile(r"^SELECT|\bRETURNING\b")


@dataclass(frozen=True, slots=True)
class StoredCookie:
    """A cookie that was given out: to whom, at which address, how long it is good.

    `authenticated` is when the user last showed a password, and stays the same when a
    cookie is exchanged for the next.
    """

    digest: str
    username: str
    address: str
    authenticated: float
    expires: float


@dataclass(frozen=True, slots=True)
class PlacedKey:
    """A public key on a server, by the comment of its line, to be removed when due."""

    identity: str
    server: str
    username: str
    file: str
    placed: float
    due: float


class Rows(Protocol):
    """What a statement answers."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""


class Connection(Protocol):
    """A connection inside of a transaction."""

    def execute(self, statement: Any, values: Any = ...) -> Rows:
        """Run a statement with `?` for each value."""


class Database(Protocol):
    """Where the tables are. Any thread; calls block."""

    def transaction(self) -> AbstractContextManager[Connection]:
        """Open a transaction: committed at the end of the block, or undone by a raise.

        Raises `StateError` when there is no database to be reached.
        """

    def close(self) -> None:
        """Close all connections."""


class State:
    """The state of brokers, in a database. Any thread; calls block.

    All raise `StateError`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._database.transaction() as connection:
            rows = connection.execute(statement, values)
            return rows.fetchall() if _ANSWERED.search(statement) else []

    # Cookies.

    def add_cookie(self, cookie: StoredCookie) -> None:
        """Remember a cookie that is given out."""
        self._run(
            "INSERT INTO cookies (digest, username, address, authenticated, expires)"
            " VALUES (?, ?, ?, ?, ?)",
            *(cookie.digest, cookie.username, cookie.address),
            *(cookie.authenticated, cookie.expires),
        )

    def take_cookie(self, digest: str) -> StoredCookie | None:
        """Return a cookie and forget it: of all who ask, one gets it."""
        rows = self._run(
            "DELETE FROM cookies WHERE digest = ?"
            " RETURNING digest, username, address, authenticated, expires",
            digest,
        )
        return StoredCookie(*rows[0]) if rows else None

    def find_cookie(self, digest: str) -> StoredCookie | None:
        """Return a cookie that stays."""
        rows = self._run(
            "SELECT digest, username, address, authenticated, expires FROM cookies"
            " WHERE digest = ?",
            digest,
        )
        return StoredCookie(*rows[0]) if rows else None

    def forget_cookies(self, username: str) -> None:
        """Forget all cookies of a user."""
        self._run("DELETE FROM cookies WHERE username = ?", username)

    # Counters, for limits.

    def count(self, name: str, amount: int, window_s: float, now: float) -> int:
        """Add to a counter, and return what it is then.

        It begins anew `window_s` after its first count.
        """
        rows = self._run(
            "INSERT INTO counters (name, amount, expires) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET"
            " amount = CASE WHEN counters.expires <= ? THEN excluded.amount"
            " ELSE counters.amount + excluded.amount END,"
            " expires = CASE WHEN counters.expires <= ? THEN excluded.expires"
            " ELSE counters.expires END RETURNING amount",
            *(name, amount, now + window_s, now, now),
        )
        return int(rows[0][0])

    def counter(self, name: str, now: float) -> tuple[int, float]:
        """Return what a counter is, and when it begins anew."""
        rows = self._run(
            "SELECT amount, expires FROM counters WHERE name = ? AND expires > ?",
            *(name, now),
        )
        return (int(rows[0][0]), float(rows[0][1])) if rows else (0, now)

    def forget_counter(self, name: str) -> None:
        """Let a counter begin anew."""
        self._run("DELETE FROM counters WHERE name = ?", name)

    # Choices of servers.

    def choose(
        self, username: str, profile: str, server: str, now: float, lasts_s: float
    ) -> str:
        """Choose a server for a user; return the one that counts.

        That is an earlier choice, if it was made less than `lasts_s` ago.
        """
        rows = self._run(
            "INSERT INTO choices (username, profile, server, chosen)"
            " VALUES (?, ?, ?, ?) ON CONFLICT (username, profile) DO UPDATE SET"
            " server = CASE WHEN choices.chosen <= ? THEN excluded.server"
            " ELSE choices.server END,"
            " chosen = CASE WHEN choices.chosen <= ? THEN excluded.chosen"
            " ELSE choices.chosen END RETURNING server",
            *(username, profile, server, now, now - lasts_s, now - lasts_s),
        )
        return str(rows[0][0])

    def unchoose(self, username: str, profile: str, servers: Iterable[str]) -> None:
        """Forget the choice of a user, if it is one of these servers."""
        for server in servers:
            self._run(
                "DELETE FROM choices WHERE username = ? AND profile = ? AND server = ?",
                *(username, profile, server),
            )

    def chosen(self, since: float) -> dict[str, int]:
        """Return how many users chose each server since then."""
        rows = self._run(
            "SELECT server, COUNT(*) FROM choices WHERE chosen > ? GROUP BY server",
            since,
        )
        return {str(server): int(users) for server, users in rows}

    # Keys on servers.

    def add_key(self, key: PlacedKey) -> None:
        """Remember a key before it is put on a server."""
        self._run(
            "INSERT INTO placed_keys (identity, server, username, file, placed, due)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            *(key.identity, key.server, key.username, key.file, key.placed, key.due),
        )

    def claim_keys(self, now: float, claim_s: float) -> list[PlacedKey]:
        """Return the keys that are due; nobody else gets them for `claim_s`."""
        rows = self._run(
            "UPDATE placed_keys SET due = ? WHERE due <= ?"
            " RETURNING identity, server, username, file, placed, due",
            *(now + claim_s, now),
        )
        return [PlacedKey(*row) for row in rows]

    def forget_key(self, identity: str) -> None:
        """Forget a key that was removed."""
        self._run("DELETE FROM placed_keys WHERE identity = ?", identity)

    def keys(self) -> list[PlacedKey]:
        """Return the keys that are on servers."""
        rows = self._run(
            "SELECT identity, server, username, file, placed, due FROM placed_keys"
        )
        return [PlacedKey(*row) for row in rows]

    # All of it.

    def tidy(self, now: float, choices_last_s: float) -> None:
        """Forget what has no meaning any more."""
        self._run("DELETE FROM cookies WHERE expires <= ?", now)
        self._run("DELETE FROM counters WHERE expires <= ?", now)
        self._run("DELETE FROM choices WHERE chosen <= ?", now - choices_last_s)


def create_tables(connection: Connection) -> None:
    """Create the tables that are not there."""
    for statement in TABLES:
        connection.execute(statement)


def open_state(url: str) -> State:
    """Open the state that a URL names, and create its tables.

    `sqlite:PATH`, or `postgresql://...` as libpq has it. Raises `StateError`.
    """
    # Here: psycopg is needed by those only who have PostgreSQL.
    if url.startswith("sqlite:"):
        module = import_module("x2go_session.broker.server.state_sqlite")
        return State(module.SqliteDatabase(url.removeprefix("sqlite:")))
    try:
        module = import_module("x2go_session.broker.server.state_postgres")
    except ImportError as error:
        raise StateError(
            f"PostgreSQL needs psycopg: pip install 'rtunnel[broker]' ({error})"
        ) from None
    return State(module.PostgresDatabase(url))
