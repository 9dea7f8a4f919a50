"""What was measured: figures round by round, curves, medians, ratios; as JSON too."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rtunnel.bench.process import BenchError

FORMAT: Final = 1
OURS: Final = "rtunnel"
# A distribution is kept as the values at these per cent: dense where tails are.
PER_CENT: Final = (
    *(number / 2 for number in range(199)),
    *(99.0, 99.25, 99.5, 99.75, 99.9, 100.0),
)

Parameters = dict[str, str | int | float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of figure of a scenario."""

    name: str
    unit: str
    more_is_better: bool = False

    @property
    def title(self) -> str:
        """The name with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(slots=True)
class Sample:
    """What one round brought for one peer.

    `figures` by the name of the figure; what a peer cannot have is left out. `times_s`
    are series of times, pooled over the rounds to a distribution; `points` are curves,
    whose medians are taken point by point.
    """

    figures: dict[str, float]
    times_s: dict[str, list[float]] = field(default_factory=dict)
    points: dict[str, list[Point]] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """All that a scenario measured. `curves` are by name, then by peer."""

    scenario: str
    title: str
    parameters: Parameters
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[Point]]] = field(default_factory=dict)

    @property
    def peers(self) -> list[str]:
        """Who was measured, ours first."""
        return list(self.rounds)

    def median(self, peer: str, figure: Figure) -> float | None:
        """Return the median over the rounds; None if the peer has no such figure."""
        values = self._values(peer, figure)
        return statistics.median(values) if values else None

    def spread(self, peer: str, figure: Figure) -> tuple[float, float] | None:
        """Return the least and the greatest of the rounds."""
        values = self._values(peer, figure)
        return (min(values), max(values)) if values else None

    def ratio(self, peer: str, figure: Figure) -> float | None:
        """Return ours over the peer's: the median of the ratios round by round."""
        ratios = [
            ours[figure.name] / other[figure.name]
            for ours, other in zip(
                self.rounds.get(OURS, []), self.rounds[peer], strict=False
            )
            if figure.name in ours and other.get(figure.name)
        ]
        return statistics.median(ratios) if ratios and peer != OURS else None

    def add(self, samples: dict[str, list[Sample]]) -> None:
        """Take in what was measured, by peer and round."""
        for peer, rounds in samples.items():
            self.rounds[peer] = [sample.figures for sample in rounds]
            for name in _names(sample.times_s for sample in rounds):
                pool = [t for sample in rounds for t in sample.times_s.get(name, [])]
                self.curves.setdefault(name, {})[peer] = distribution(pool)
            for name in _names(sample.points for sample in rounds):
                points = [p for sample in rounds for p in sample.points.get(name, [])]
                self.curves.setdefault(name, {})[peer] = _medians(points)

    def _values(self, peer: str, figure: Figure) -> list[float]:
        return [
            figures[figure.name]
            for figures in self.rounds.get(peer, [])
            if figure.name in figures
        ]


def percentile(sorted_values: Sequence[float], per_cent: float) -> float:
    """Return the value that so many per cent of them do not exceed.

    Of no values at all: infinity, since what is timed never came back.
    """
    if not sorted_values:
        return math.inf
    index = int(len(sorted_values) * per_cent / 100)
    return sorted_values[min(index, len(sorted_values) - 1)]


def distribution(values: Iterable[float]) -> list[Point]:
    """Return (value, per cent of the values that do not exceed it)."""
    ordered = sorted(values)
    return [(percentile(ordered, part), part) for part in PER_CENT] if ordered else []


def _names(parts: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


def _medians(points: list[Point]) -> list[Point]:
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    return [(x, statistics.median(ys)) for x, ys in sorted(by_x.items())]


# -- files -----------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """One run: where it was, and what each scenario brought."""

    environment: dict[str, str]
    results: list[Result]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        content = {"format": FORMAT, **asdict(self)}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote. Raises `BenchError` if it is not that."""
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']} is not {FORMAT}")
            results = [_result(fields) for fields in content["results"]]
            return cls(content["environment"], results)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(
                f"{path} is not what `rtunnel bench --json` writes: {error}"
            ) from error


def _result(fields: dict[str, Any]) -> Result:
    figures = [Figure(**figure) for figure in fields.pop("figures")]
    curves = {
        name: {peer: [(x, y) for x, y in points] for peer, points in peers.items()}
        for name, peers in fields.pop("curves").items()
    }
    return Result(**fields, figures=figures, curves=curves)
