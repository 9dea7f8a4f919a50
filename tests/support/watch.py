"""Ends a run of tests that hangs, and has it say where.

Each test has its own limits (pyproject.toml). They do not hold between tests, nor for a
process that is stopped or whose interpreter waits for its lock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from typing import Final

import pytest

from tests.support.processes import children

# How long all tests may take together, which .ci/run says; else as long as they like.
LIMIT: Final = "TEST_LIMIT_S"


def pytest_configure(config: pytest.Config) -> None:
    """Watch the processes of the tests from the one that they report to."""
    limit_s = os.environ.get(LIMIT)
    if limit_s is None or hasattr(config, "workerinput"):
        return
    timer = threading.Timer(float(limit_s), _abort)
    timer.daemon = True
    timer.start()
    config.add_cleanup(timer.cancel)


def _abort() -> None:
    """Print what this process does, and have the others do so and end."""
    faulthandler.dump_traceback(sys.__stderr__)
    for pid in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
            os.kill(pid, signal.SIGCONT)
