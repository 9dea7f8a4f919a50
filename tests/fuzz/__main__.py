"""Run the fuzzers: the corpus first, then so many seconds of what nobody has tried yet.

    python -m tests.fuzz --seconds 60
    python -m tests.fuzz --seconds 600 messages sftp

Five at a time. What leads further is kept in build/fuzz, where the next run begins. A
finding is a file in build/fuzz/findings; in the end it is printed, in base64, with the
command that shows it again. Then this ends with status 1; so it does if a fuzzer saw
fewer branches than it has to, since one that reaches nothing finds nothing.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
BUILD: Final = ROOT / "build" / "fuzz"
FINDINGS: Final = BUILD / "findings"
AT_ONCE: Final = 5
MEMORY_MB: Final = 2048
ONE_INPUT_S: Final = 25
# How long a fuzzer may take for its start, and for its corpus.
GRACE_S: Final = 120
FIGURES: Final = re.compile(r"^#\d+\s.*?\bcov: (\d+) ft: (\d+)", re.MULTILINE)
RUNS: Final = re.compile(r"number_of_executed_units:\s*(\d+)")
# Leaks of the interpreter are no findings; memory that is given back is poisoned, not
# kept.
SANITIZERS: Final = {"ASAN_OPTIONS": "quarantine_size_mb=16"}


@dataclass(frozen=True)
class Target:
    """One fuzzer: what it runs, and how many branches its corpus has to reach."""

    name: str
    least_branches: int
    most_bytes: int = 1024

    @property
    def corpus(self) -> Path:
        """What is in the repository."""
        return HERE / "corpus" / self.name

    @property
    def command(self) -> list[str]:
        """The program, as it is called from the top of the checkout."""
        if (HERE / f"fuzz_{self.name}.c").exists():
            return [f"build/fuzz/bin/fuzz_{self.name}"]
        return [sys.executable, "-m", f"tests.fuzz.fuzz_{self.name}"]


TARGETS: Final = (
    Target("wire", 20, 300),
    Target("packets", 100),
    Target("channels", 80),
    Target("messages", 500, 700),
    Target("packetizer", 50),
    Target("sftp", 200),
    Target("toml", 250, 2000),
    Target("ini", 250, 2000),
    Target("replies", 30),
    Target("broker_answers", 100, 2000),
)


@dataclass(frozen=True)
class Outcome:
    """How one run of one fuzzer went."""

    target: Target
    status: int
    branches: int
    features: int
    runs: int
    seconds: float
    log: str

    @property
    def problem(self) -> str:
        """What is wrong, or nothing."""
        if self.status != 0:
            return f"ended with status {self.status}"
        if self.branches < self.target.least_branches:
            return f"saw {self.branches} branches, fewer than it has to"
        return ""


def run(target: Target, seconds: int) -> Outcome:
    """Run a fuzzer; with 0 seconds, on its corpus only."""
    work = BUILD / "corpus" / target.name
    work.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-max_total_time={seconds}" if seconds else "-runs=0",
        f"-max_len={target.most_bytes}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={ONE_INPUT_S}",
        f"-artifact_prefix={FINDINGS.relative_to(ROOT)}/{target.name}-",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    dictionary = HERE / "corpus" / f"{target.name}.dict"
    if dictionary.exists():
        flags.append(f"-dict={dictionary.relative_to(ROOT)}")
    command = [*target.command, *flags]
    # The first folder is where new inputs go.
    folders = [work, target.corpus] if seconds else [target.corpus]
    command += [str(folder.relative_to(ROOT)) for folder in folders]
    before_s = time.monotonic()
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **SANITIZERS}, text=True,
        errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=seconds + GRACE_S, check=False,
    )  # fmt: skip
    figures = FIGURES.findall(ran.stdout)
    runs = RUNS.search(ran.stdout)
    branches, features = map(int, figures[-1]) if figures else (0, 0)
    return Outcome(
        target, ran.returncode, branches, features,
        int(runs[1]) if runs else 0, time.monotonic() - before_s, ran.stdout,
    )  # fmt: skip


def show(outcome: Outcome) -> None:
    """Print one line."""
    print(
        f"{outcome.target.name:12} {outcome.branches:5} branches "
        f"{outcome.features:6} features {outcome.runs:9} runs {outcome.seconds:5.0f} s"
        f"  {outcome.problem or 'ok'}",
        flush=True,
    )


def explain(outcome: Outcome) -> None:
    """Print what a fuzzer said, what it found, and how to see it again."""
    target = outcome.target
    print(f"\n{target.name} {outcome.problem}:")
    print("\n".join(outcome.log.splitlines()[-60:]))
    found = re.search(r"Test unit written to (\S+)", outcome.log)
    if found is None:
        return
    finding = ROOT / found[1]
    print("\nTo see it again, from the top of the checkout:")
    print(f"    mkdir -p {FINDINGS.relative_to(ROOT)}; base64 -d >{found[1]} <<END")
    print(base64.encodebytes(finding.read_bytes()).decode(), end="END\n")
    print(f"    {shlex.join(target.command)} {found[1]}")
    print(f"When it is mended, keep it: {target.corpus.relative_to(ROOT)}/", flush=True)


def main() -> int:
    """Replay and fuzz what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    names = [target.name for target in TARGETS]
    parser.add_argument("targets", nargs="*", choices=[*names, []], default=[])
    parser.add_argument("--seconds", type=int, default=60, help="for each; 0: replay")
    given = parser.parse_args()
    FINDINGS.mkdir(parents=True, exist_ok=True)
    chosen = [
        each for each in TARGETS if not given.targets or each.name in given.targets
    ]
    problems: list[Outcome] = []
    for seconds in dict.fromkeys((0, given.seconds)):
        print(f"{seconds} s each:" if seconds else "what is in the corpus:", flush=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for outcome in pool.map(run, chosen, itertools.repeat(seconds)):
                show(outcome)
                if outcome.problem:
                    problems.append(outcome)
        if problems:
            break
    for outcome in problems:  # last, where whoever reads a log looks first
        explain(outcome)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
