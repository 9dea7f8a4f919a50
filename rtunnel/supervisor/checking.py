"""Look for mistakes that only show when a configuration is used; connect to nobody."""

from __future__ import annotations

import os
from pathlib import Path

from rtunnel.errors import RTunnelError
from rtunnel.ssh.config import resolve
from rtunnel.ssh.options import Options
from rtunnel.supervisor.config import Config
from rtunnel.toml_file import lines_of


def check(path: str | os.PathLike[str], config: Config) -> list[str]:
    """Return the mistakes in a file that `load` has read, each with its line.

    Reads ssh_config(5), and looks for the keys and the known_hosts that are named. A
    `Match exec` of ssh_config is run.
    """
    lines = lines_of(Path(path).read_text("utf-8"))
    found: list[tuple[int, str]] = []
    for name, server in config.servers.items():
        where = f"servers.{name}"
        try:
            resolve(server.destination, Options(**server.connect_options))
        except RTunnelError as error:
            found.append((lines["servers", name], f"{where}: {error}"))
        files = {
            "identity_files": server.identity_files,
            "certificate_files": server.certificate_files,
            "known_hosts": (server.known_hosts,) if server.known_hosts else (),
        }
        for key, paths in files.items():
            for file in paths:
                if _is_missing(file):
                    line = lines["servers", name, key]
                    found.append((line, f"{where}.{key}: there is no file {file}"))
    return [f"{path}:{line}: {message}" for line, message in sorted(found)]


def _is_missing(file: str) -> bool:
    # What ssh_config(5) puts in for %h or ${NAME} is known only for a connection.
    plain = "%" not in file and "$" not in file and file != "none"
    return plain and not os.path.exists(os.path.expanduser(file))
