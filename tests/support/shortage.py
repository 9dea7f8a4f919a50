"""Processes that are short of something."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from itertools import count


@contextlib.contextmanager
def short_of_descriptors(pid: int) -> Iterator[None]:
    """Let a process have no more descriptors than it has."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The limit is one of numbers: there may be free ones between those in use.
    free = next(n for n in count() if not os.path.lexists(f"/proc/{pid}/fd/{n}"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
