"""That the soak runs, and says so; not how long it holds."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.command import ROOT


def test_a_soak_of_a_blow_or_two_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.05", "--seed", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("0.05 min, backend each, seed 3\n")
    assert "verified on" in done.stdout
    assert done.stdout.endswith("all of it held\n")
