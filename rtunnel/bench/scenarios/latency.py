"""The round trip of a small message through an idle tunnel."""

from __future__ import annotations

from rtunnel.bench.load import ECHO_BYTES
from rtunnel.bench.results import Figure, Parameters, Sample, percentile
from rtunnel.bench.scenario import (
    DIRECT,
    GATEWAY,
    Scenario,
    Settings,
    Stage,
    tunnel,
    visitor,
)

CURVE = "idle round trip"


class Latency(Scenario):
    """Round trips of 64 bytes over loopback, one after the other, on an idle tunnel."""

    name = "latency"
    title = "Echo round trip over loopback, idle"
    figures = (Figure("p50", "µs"), Figure("p99", "µs"))
    references = (GATEWAY, DIRECT)

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._round_trips = int(settings.pick(5000, 200))
        self._target = stage.target("echo")

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {"bytes": ECHO_BYTES, "round trips": self._round_trips}

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        if peer == DIRECT:
            times_s = self._visit(self._target)
        else:
            with tunnel(peer, self.stage.login(peer), [self._target]) as opened:
                times_s = self._visit(opened.ports[0])
        ordered = sorted(times_s)
        figures = {
            "p50": percentile(ordered, 50) * 1e6,
            "p99": percentile(ordered, 99) * 1e6,
        }
        return Sample(figures, times_s={CURVE: times_s})

    def _visit(self, port: int) -> list[float]:
        with visitor(port, "echo", self._round_trips) as echoing:
            times_s: list[float] = echoing.read()["times_s"]
        return times_s
