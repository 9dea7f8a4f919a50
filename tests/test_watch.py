"""A run of the tests that hangs ends, and says where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.watch import LIMIT

HANGS = """
import os, signal, time
def test_a_process_that_is_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(300)
def test_nothing():
    pass
"""


@pytest.mark.parametrize("stops", [True, False])
def test_a_run_that_hangs_ends_and_says_where(tmp_path: Path, stops: bool) -> None:
    done = run(tmp_path, HANGS if stops else HANGS.replace("SIGSTOP", "SIGCONT"), 20)
    assert done.returncode == 1
    assert "Fatal Python error: Aborted" in done.stderr
    assert "in test_a_process_that_is_stopped" in done.stderr
    assert "crashed while running 'test_it.py::test_a_process" in done.stdout


def test_a_run_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_nothing(): pass\n", 600)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def run(folder: Path, tests: str, limit_s: int) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(tests)
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull),
            *("-n", "1", "--max-worker-restart", "0", "-p", "tests.support.watch"),
            *("--rootdir", str(folder), str(folder)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, LIMIT: str(limit_s), "PYTEST_ADDOPTS": ""},
    )
