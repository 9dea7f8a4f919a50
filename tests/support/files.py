"""What this process has open."""

from __future__ import annotations

import contextlib
import gc
import os


def open_files() -> int:
    """Return how many descriptors this process has."""
    gc.collect()  # what hangs on a cycle is not left behind
    return len(os.listdir("/proc/self/fd"))


def inheritable_files() -> set[int]:
    """Return the descriptors that a program started from here would get."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the look itself
            if os.get_inheritable(int(name)):
                found.add(int(name))
    return found
