"""Two sockets of this machine: `rtunnel.pump.relay`, socat, and a bare loop in C."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rtunnel.bench import relaying
from rtunnel.bench.ports import LOOPBACK, free_port
from rtunnel.bench.process import Child, python
from rtunnel.bench.results import OURS, Figure, Parameters, Sample
from rtunnel.bench.scenario import Scenario, Settings, Stage, moving

SOCAT = "socat"
LOOP = "C splice loop"
SOCAT_BUFFER_BYTES = 262_144


class Relay(Scenario):
    """Bulk from one socket to another in one process, without SSH."""

    name = "relay"
    title = "From socket to socket, without SSH"
    figures = (
        Figure("throughput", "MB/s", more_is_better=True),
        Figure("CPU", "s/GB"),
    )
    against = ()

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._count = int(settings.pick(4_000_000_000, 64_000_000))
        self._target = stage.target("sink")
        needs = {SOCAT: SOCAT, LOOP: relaying.COMPILER}
        self._others = [peer for peer, program in needs.items() if self._can(program)]
        self._loop: Path | None = None

    @property
    def peers(self) -> tuple[str, ...]:
        """Who is measured, ours first."""
        return (OURS, *self._others)

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {
            "MB": self._count // 1_000_000,
            "KiB a copy of socat": SOCAT_BUFFER_BYTES // 1024,
            "KiB of the pipe of the loop": relaying.PIPE_BYTES // 1024,
        }

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        with self._started(peer) as (process, port):
            before_s = process.cpu_s()
            with moving(peer, port, "send", self._count) as seconds:
                used_s = process.cpu_s() - before_s
        return Sample(
            {
                "throughput": self._count / 1e6 / seconds,
                "CPU": used_s / self._count * 1e9,
            }
        )

    @contextmanager
    def _started(self, peer: str) -> Iterator[tuple[Child, int]]:
        if peer == SOCAT:
            port = free_port()
            command = [
                *("socat", "-d", "-d", "-b", str(SOCAT_BUFFER_BYTES)),
                f"TCP-LISTEN:{port},bind={LOOPBACK},reuseaddr",
                f"TCP:{LOOPBACK}:{self._target}",
            ]
            with Child(peer, command, joined=True) as child:
                while "listening on" not in child.read_line():
                    pass
                yield child, port
            return
        if peer == LOOP:
            self._loop = self._loop or relaying.build_splice_loop(self.stage.folder)
            child = Child(peer, [str(self._loop), str(self._target)])
        else:
            child = python(peer, "relaying", "pump", self._target)
        with child:
            yield child, int(child.read_line())

    def _can(self, program: str) -> bool:
        found = shutil.which(program) is not None
        if not found:
            self.notes.append(f"{program} is not installed: not compared")
        return found
