"""Processes that are short of something."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def short_of_descriptors(pid: int) -> Iterator[None]:
    """Let a process have no more descriptors than it has."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    have = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (have, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
