"""The rounds: each peer once in each, so that a machine that drifts is fair to all."""

from __future__ import annotations

import importlib
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rtunnel.bench.results import Result, Sample
from rtunnel.bench.scenario import Scenario, Settings, Stage

# In the order in which `all` takes them.
SCENARIOS: Final = {
    "bulk": "Bulk",
    "latency": "Latency",
    "wan": "Wan",
    "mixed": "Mixed",
    "rate": "Rate",
    "idle": "Idle",
    "relay": "Relay",
    "sftp": "Sftp",
}

# Three for each idle channel, and some.
MOST_FILES: Final = 65_536

# Told before each measurement: the scenario, the peer, the round from 0, all rounds.
OnStep = Callable[[str, str, int, int], None]


def run(names: Sequence[str], settings: Settings, on_step: OnStep) -> Iterator[Result]:
    """Measure the scenarios of these names, and yield what each brought.

    Raises `BenchError` if a part fails.
    """
    with (
        _many_descriptors(),
        tempfile.TemporaryDirectory(prefix="rtunnel-bench-") as folder,
    ):
        for name in names:
            with Stage(Path(folder) / name) as stage:
                stage.folder.mkdir()
                yield _measure(_scenario(name)(stage, settings), on_step)


def _scenario(name: str) -> type[Scenario]:
    module = importlib.import_module(f"rtunnel.bench.scenarios.{name}")
    scenario: type[Scenario] = getattr(module, SCENARIOS[name])
    return scenario


def _measure(scenario: Scenario, on_step: OnStep) -> Result:
    samples: dict[str, list[Sample]] = {peer: [] for peer in scenario.peers}
    rounds = scenario.settings.rounds
    for number in range(rounds):
        for peer in scenario.peers:
            on_step(scenario.name, peer, number, rounds)
            samples[peer].append(scenario.measure(peer, number))
    result = Result(
        scenario.name,
        scenario.title,
        {"rounds": rounds, **scenario.parameters()},
        list(scenario.figures),
        scenario.notes,
    )
    result.add(samples)
    return result


@contextmanager
def _many_descriptors() -> Iterator[None]:
    """Allow this process and its children as many descriptors as are ever needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MOST_FILES), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
