"""The processes of a benchmark: started, spoken to by lines, watched, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import rtunnel

# Nothing that is measured takes so long: whoever is silent longer is stuck.
ANSWER_TIMEOUT_S: Final = 300.0
STOP_TIMEOUT_S: Final = 5.0
# Of what a process wrote to stderr, for the message about its end.
TAIL_BYTES: Final = 2000
# The part of a clock's id that says "CPU time of a process" (clock_getcpuclockid(3)).
CPU_CLOCK_OF_PROCESS: Final = 2


class BenchError(Exception):
    """The benchmark cannot go on: says which part failed, and how."""


class Child:
    """One process, with lines on its stdin and stdout; `stop()` ends it.

    `name` is for messages. Lines of stderr are kept for them, or with `joined` come as
    those of stdout.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, joined: bool = False
    ) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if joined else self._stderr,
            env={**os.environ, "PYTHONPATH": _python_path()},
            text=True,
        )
        self.pid = self._process.pid

    def read_line(self, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Return its next line. Raises `BenchError` if it ends or is stuck."""
        assert self._process.stdout is not None
        # Closes the pipe by killing, since a read of it cannot be given a limit.
        limit = threading.Timer(timeout_s, self._process.kill)
        limit.daemon = True  # an interrupt may come before the `try`
        limit.start()
        try:
            line = self._process.stdout.readline()
            stuck = limit.finished.is_set()
        finally:
            limit.cancel()
        if not line:
            self._process.wait(STOP_TIMEOUT_S)
            what = f"said nothing for {timeout_s:.0f} s" if stuck else self._end()
            raise BenchError(f"{self.name}: {what}")
        return line

    def read(self) -> Any:
        """Return its next line, which is JSON."""
        return json.loads(self.read_line())

    def ask(self, command: str) -> Any:
        """Write a line; return the answer, which is a line of JSON."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self.read()

    def cpu_s(self) -> float:
        """Return its CPU time, user and system, of all threads that it ever had."""
        return time.clock_gettime(~self.pid << 3 | CPU_CLOCK_OF_PROCESS)

    def resident_kib(self) -> int:
        """Return the memory that it has in RAM, exactly (proc(5): smaps_rollup)."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        line = next(line for line in text.splitlines() if line.startswith("Rss:"))
        return int(line.split()[1])

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def stop(self) -> None:
        """End it: by SIGTERM, and by SIGKILL if that does not help."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._stderr.close()

    def _end(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read()[-TAIL_BYTES:].decode(errors="replace").strip()
        return f"ended with status {self._process.returncode}. {text}".strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def python(name: str, module: str, *arguments: object) -> Child:
    """Start a module of this package as a program."""
    command = [sys.executable, "-m", f"rtunnel.bench.{module}"]
    return Child(name, [*command, *(str(argument) for argument in arguments)])


def _python_path() -> str:
    """Return PYTHONPATH with this rtunnel first, wherever it was imported from."""
    here = str(Path(rtunnel.__file__).parent.parent)
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
