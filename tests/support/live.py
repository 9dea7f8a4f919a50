"""Live objects of the compiled modules, which debug builds count (src/pump/live.h)."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rtunnel import _engine, _pump

# What a test may leave behind for this long: threads that are just about to end.
PATIENCE_S = 20.0


def live() -> dict[str, int]:
    """Return what lives, by module and kind; nothing where the modules do not count."""
    modules = {"engine": _engine.live() or {}, "pump": _pump.live() or {}}
    return {
        f"{module}: {kind}": count
        for module, counts in modules.items()
        for kind, count in counts.items()
        if count != 0
    }


@contextmanager
def nothing_left(shared: bool) -> Iterator[None]:
    """See that whatever is made meanwhile is gone in the end, in a debug build.

    What lived before belongs to somebody else, whose memory may grow. With `shared`,
    a server goes on that may still know its last connection: that is without keys and
    descriptors then, and these are looked at.
    """
    before = live()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while left := {
        name: count
        for name, count in live().items()
        if count > before.get(name, 0)
        and (name.endswith((": key", ": descriptor")) if shared else True)
        and not (name in before and name.endswith(": block"))
    }:
        gc.collect()
        assert time.monotonic() < deadline, f"left behind: {left}, before: {before}"
        time.sleep(0.01)
