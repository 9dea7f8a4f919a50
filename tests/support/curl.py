"""curl, as people use it: against a port, or through a SOCKS proxy."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

# What curl ends with: see EXIT CODES of curl(1).
COULD_NOT_CONNECT = 7
GOT_NOTHING = 52
RECEIVE_ERROR = 56
PROXY_ERROR = 97


@dataclass(frozen=True)
class Answer:
    """What came back of one call of curl."""

    status: int  # of curl
    body: bytes
    errors: str


def curl(*arguments: str) -> Answer:
    """Run curl with these arguments, and without what the environment may add."""
    done = subprocess.run(
        ["curl", "--disable", "--silent", "--show-error", "--noproxy", "", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr.decode())
