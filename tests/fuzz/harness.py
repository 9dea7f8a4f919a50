"""What the fuzzers of Python code share: atheris, and how an input is read."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import atheris


def watched(*also: str) -> AbstractContextManager[Any]:
    """Import the code under test within this, so that its branches are seen.

    `also` are modules that it stands on, where their branches show the way.
    """
    found: AbstractContextManager[Any] = atheris.instrument_imports(
        include=["rtunnel", "x2go_session", *also], enable_loader_override=False
    )
    return found


def fuzz(test: Callable[[bytes], None]) -> None:
    """Run as libFuzzer's flags say, which are the arguments of this program."""
    logging.disable(logging.CRITICAL)  # what is logged of nonsense is not looked at
    atheris.Setup(sys.argv, test)
    atheris.Fuzz()


class Input:
    """What the fuzzer found, read as decisions; zeros past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes there are still."""
        return len(self._data) - self._at

    def byte(self) -> int:
        """Return the next byte."""
        return self.bytes(1)[0] if self.left else 0

    def number(self) -> int:
        """Return a number of 16 bits."""
        return self.byte() << 8 | self.byte()

    def bytes(self, most: int) -> bytes:
        """Return up to so many bytes of the input itself."""
        found = self._data[self._at : self._at + most]
        self._at += len(found)
        return found

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.bytes(self.left)
