"""Short connections: how many a second, and what one costs."""

from __future__ import annotations

from rtunnel.bench.load import BURST_BYTES
from rtunnel.bench.results import Figure, Parameters, Sample
from rtunnel.bench.scenario import (
    DIRECT,
    GATEWAY,
    Scenario,
    Settings,
    Stage,
    tunnel,
    visitor,
)

AT_ONCE = 20


class Rate(Scenario):
    """Short connections, 20 at a time: open, 16 bytes echoed, close."""

    name = "rate"
    title = "Short connections over loopback, 20 at a time"
    figures = (
        Figure("connections", "1/s", more_is_better=True),
        Figure("client's CPU for one", "µs"),
    )
    references = (GATEWAY, DIRECT)

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._count = int(settings.pick(3000, 200))
        self._target = stage.target("crowd")

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {"connections": self._count, "at once": AT_ONCE, "bytes": BURST_BYTES}

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        if peer == DIRECT:
            return Sample({"connections": self._visit(self._target)})
        with tunnel(peer, self.stage.login(peer), [self._target]) as opened:
            before_s = opened.client.cpu_s()
            rate = self._visit(opened.ports[0])
            used_s = opened.client.cpu_s() - before_s
        cost = used_s / self._count * 1e6
        return Sample({"connections": rate, "client's CPU for one": cost})

    def _visit(self, port: int) -> float:
        with visitor(port, "burst", self._count, AT_ONCE) as bursting:
            result = bursting.read()
        return float(result["connections"] / result["seconds"])
