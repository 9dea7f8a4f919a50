"""A real PostgreSQL of our own, on a Unix socket in a folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

PATIENCE_S = 60.0
# It refuses to run as root.
USER = "nobody"


def program(name: str) -> str:
    """Return the newest of a program; Debian keeps them beside each other."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    where = str(found[-1]) if found else shutil.which(name)
    if where is None:
        pytest.fail(f"the tests need PostgreSQL's {name}: see .ci/prepare")
    return where


class Postgres:
    """A server for the tests; each database that is asked for is a new one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            entry = pwd.getpwnam(USER)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            ids = f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}"
            self._as_user = ["setpriv", *ids, "--clear-groups"]
        self._data = self.folder / "data"
        self._run("initdb", "-U", "tests", "-A", "trust", "-N", "-D", str(self._data))
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-k {self.folder} -c listen_addresses= -F -c max_connections=60"
        log = self.folder / "log"
        self._run(
            *("pg_ctl", "-D", str(self._data), "-w", "-t", str(int(PATIENCE_S))),
            *("-l", str(log), "-o", options, "start"),
        )

    def stop(self) -> None:
        """End it; its databases stay."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        """End it, and remove all that it had."""
        self.stop()
        shutil.rmtree(self.folder)

    def database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"db{uuid.uuid4().hex}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://tests@/{name}?host={self.folder}"

    def _run(self, name: str, *arguments: str) -> None:
        # To files, not to pipes: the server would keep those open.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [*self._as_user, program(name), *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=PATIENCE_S * 2,
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for the whole run."""
    server = Postgres()
    try:
        yield server
    finally:
        server.remove()
