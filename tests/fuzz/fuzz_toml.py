"""Files of the supervisor and of the gateway: any bytes, and any values for their keys.

Whatever is wrong is a `ConfigError`, each line of which names a line that the file has.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.fuzz.harness import fuzz, watched

with watched("tomllib", "ipaddress"):
    import tomllib

    from rtunnel import toml_file
    from rtunnel.errors import ConfigError
    from rtunnel.gateway.config_file import GatewayConfig
    from rtunnel.supervisor.config import Config

PATH = Path("/etc/rtunnel/tunnels.toml")
COMPLAINT = re.compile(re.escape(str(PATH)) + r":(\d+): \S")


def check_lines(text: str) -> None:
    """Every key of a valid document has a line, and that line is in the document."""
    last = text.count("\n") + 1
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    lines = toml_file.lines_of(text)
    for key in document:
        assert 1 <= lines[(key,)] <= last


def test(data: bytes) -> None:
    """Read the bytes as both files."""
    last = data.count(b"\n") + 1
    for schema in (Config, GatewayConfig):
        try:
            toml_file.parse(data, schema, PATH)
        except ConfigError as error:
            for line in str(error).split("\n"):
                found = COMPLAINT.match(line)
                assert found is not None, line
                assert 1 <= int(found[1]) <= last, line
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    check_lines(text)


if __name__ == "__main__":
    fuzz(test)
