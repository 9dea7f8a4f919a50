"""Thousands of idle channels: what each one costs to keep, and costs the others."""

from __future__ import annotations

from rtunnel.bench.results import Figure, Parameters, Point, Sample, percentile
from rtunnel.bench.scenario import GATEWAY, Scenario, Settings, Stage, tunnel, visitor

SHARES = (0.01, 0.1, 0.25, 0.5, 1.0)
# Two threads a channel: paramiko's are not made for more.
MOST_CHANNELS = {"paramiko": 1000}
MEMORY_CURVE = "resident memory against channels"
COST_CURVE = "client's CPU for an echo against channels"
TIME_CURVE = "round trip against channels"


class Idle(Scenario):
    """Channels that are open and silent, but for echoes on random ones of them."""

    name = "idle"
    title = "Idle channels on one connection"
    figures = (
        Figure("channels held", "", more_is_better=True),
        Figure("resident memory a channel", "KiB"),
        Figure("threads", ""),
        Figure("echo with 1 channel, p50", "µs"),
        Figure("echo with all, p50", "µs"),
        Figure("client's CPU for an echo with 1", "µs"),
        Figure("client's CPU for an echo with all", "µs"),
    )
    references = (GATEWAY,)

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._channels = int(settings.pick(10_000, 200))
        self._sample = int(settings.pick(200, 50))
        self._target = stage.target("crowd")

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {
            "channels": self._channels,
            "channels of paramiko": self._most("paramiko"),
            "echoes": self._sample,
        }

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        steps = [1, *(int(self._most(peer) * share) for share in SHARES)]
        memory: list[Point] = []
        cost: list[Point] = []
        times: list[Point] = []
        with (
            tunnel(peer, self.stage.login(peer), [self._target]) as opened,
            visitor(opened.ports[0], "hold") as holding,
        ):
            client = opened.client
            for count in steps:
                holding.ask(f"open {count}")
                before_s = client.cpu_s()
                times_s = sorted(holding.ask(f"echo {self._sample}")["times_s"])
                cost.append((count, (client.cpu_s() - before_s) / self._sample * 1e6))
                times.append((count, percentile(times_s, 50) * 1e6))
                memory.append((count, client.resident_kib()))
            threads = client.threads()
        grown = (memory[-1][1] - memory[0][1]) / (steps[-1] - steps[0])
        figures = {
            "channels held": float(steps[-1]),
            "resident memory a channel": grown,
            "threads": float(threads),
            "echo with 1 channel, p50": times[0][1],
            "echo with all, p50": times[-1][1],
            "client's CPU for an echo with 1": cost[0][1],
            "client's CPU for an echo with all": cost[-1][1],
        }
        curves = {
            MEMORY_CURVE: [(count, kib / 1024) for count, kib in memory],
            COST_CURVE: cost,
            TIME_CURVE: times,
        }
        return Sample(figures, points=curves)

    def _most(self, peer: str) -> int:
        return min(self._channels, MOST_CHANNELS.get(peer, self._channels))
