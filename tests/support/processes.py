"""Processes that others have started."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children(pid: int | str = "self") -> list[int]:
    """Return the numbers of the processes that `pid` started and has not waited for.

    None of one that has ended.
    """
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found += map(int, (thread / "children").read_text().split())
    return found
