"""Supervisors for the tests: their files, and waits that are short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rtunnel import Supervisor
from rtunnel.status.model import ConnectionInfo, ListenerRow
from tests.support.sshd import Sshd, wait_until

# For what has to happen by itself, on a machine that may be busy.
PATIENCE_S = 30.0

# Tries that follow each other quickly; those for logins cannot be that short.
QUICK = {
    "first_s": 0.1,
    "max_s": 0.5,
    "port_taken_first_s": 1,
    "port_taken_max_s": 1,
    "refused_first_s": 1,
    "refused_max_s": 1,
}


def server_table(sshd: Sshd, port: int | None = None, **more: Any) -> dict[str, Any]:
    """Return the keys that reach an sshd of the tests, and more; `port` leads to it."""
    login = sshd.login if port is None else sshd.login.by(port)
    return {
        "destination": f"{login.user}@127.0.0.1:{login.port}",
        "identity_files": [str(login.user_key)],
        "known_hosts": str(login.known_hosts),
        "config_file": "none",
        "agent": False,
        "retry": QUICK,
        **more,
    }


def toml(table: dict[str, Any]) -> str:
    """Write a table of tables as TOML."""
    lines: list[str] = []
    _write(table, (), lines)
    return "\n".join(lines) + "\n"


def _write(table: dict[str, Any], place: tuple[str, ...], lines: list[str]) -> None:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if key not in inner:
            lines.append(f"{json.dumps(key)} = {json.dumps(value)}")
    for key, value in inner.items():
        lines.append("[" + ".".join(json.dumps(part) for part in (*place, key)) + "]")
        _write(value, (*place, key), lines)


class TomlFile:
    """A configuration file that a test writes again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **servers: dict[str, Any]) -> Path:
        """Replace the file at once, as editors do, by one with these servers."""
        return self.write_text(toml({"servers": servers}))

    def write_text(self, text: str) -> Path:
        """Replace the file at once."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)
        return self.path


def info(supervisor: Supervisor, server: str = "a") -> ConnectionInfo:
    """Return what a supervisor says of one server."""
    (found,) = [c for c in supervisor.status().connections if c.name == server]
    return found


def row(supervisor: Supervisor, tunnel: str, server: str = "a") -> ListenerRow:
    """Return what a supervisor says of one tunnel."""
    (found,) = [r for r in info(supervisor, server).listeners if r.name == tunnel]
    return found


def wait_ready(supervisor: Supervisor) -> None:
    """Wait until all that should listen does."""
    assert supervisor.wait_ready(PATIENCE_S), supervisor.status()


def wait_reconnected(supervisor: Supervisor, times: int, server: str = "a") -> None:
    """Wait until it has reconnected so often, and all listens again."""
    wait_until(lambda: info(supervisor, server).reconnects >= times, PATIENCE_S)
    wait_ready(supervisor)
