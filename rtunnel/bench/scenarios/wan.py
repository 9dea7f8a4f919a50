"""A fast and long link: 1 Gbit/s at 100 ms, and what other round trips do to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rtunnel.bench.results import Figure, Parameters, Point, Sample
from rtunnel.bench.scenario import (
    GATEWAY,
    Scenario,
    Settings,
    Stage,
    link,
    rate_of,
    tunnel,
    visitor,
)

LINK = "link alone"
RATE_BYTES_S = 125_000_000
RTT_S = 0.1
SWEEP_RTT_S: tuple[float, ...] = (0.001, 0.01, 0.05, RTT_S)
QUICK_SWEEP_RTT_S = (RTT_S,)
# The other round trips are measured in the first rounds only: they make a curve.
SWEEP_ROUNDS = 3
QUEUE_BYTES = 4_000_000
INBOUND_CURVE = "inbound against round trip"
OUTBOUND_CURVE = "outbound against round trip"


class Wan(Scenario):
    """One bulk channel over a long link, one direction after the other, once under way.

    All are clients of the sshd at its other end; "own gateway" is rtunnel as the client
    of `rtunnel.gateway` there; "link alone" has no SSH in it.
    """

    name = "wan"
    title = "A long link: 1 Gbit/s, 100 ms round trip"
    figures = (
        Figure("inbound", "MB/s", more_is_better=True),
        Figure("inbound share of the link", "%", more_is_better=True),
        Figure("outbound", "MB/s", more_is_better=True),
        Figure("outbound share of the link", "%", more_is_better=True),
    )
    against = ("ssh",)
    references = (GATEWAY, LINK)

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._warm_s = settings.pick(3.0, 0.5)
        self._seconds = settings.pick(5.0, 0.5)
        self._arrived = [stage.counter(), stage.counter()]
        self._sink = stage.target("sink", counter=self._arrived[0])
        self._source = stage.target("source")

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {
            "Mbit/s of the link": RATE_BYTES_S * 8 // 1_000_000,
            "ms of its round trip": RTT_S * 1000,
            "KB of its queue": QUEUE_BYTES // 1000,
            "seconds measured": self._seconds,
            "seconds before that": self._warm_s,
        }

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        sweep = QUICK_SWEEP_RTT_S if self.settings.quick else SWEEP_RTT_S
        swept = sweep if number < SWEEP_ROUNDS else (RTT_S,)
        curves: dict[str, list[Point]] = {INBOUND_CURVE: [], OUTBOUND_CURVE: []}
        for rtt_s in swept:
            with self._opened(peer, rtt_s) as (sink, source):
                inbound = self._inbound(sink)
                outbound = self._outbound(source)
            curves[INBOUND_CURVE].append((rtt_s * 1000, inbound / 1e6))
            curves[OUTBOUND_CURVE].append((rtt_s * 1000, outbound / 1e6))
        # The last round trip of the sweep is that of the scenario.
        figures = {
            "inbound": inbound / 1e6,
            "inbound share of the link": inbound / RATE_BYTES_S * 100,
            "outbound": outbound / 1e6,
            "outbound share of the link": outbound / RATE_BYTES_S * 100,
        }
        return Sample(figures, points=curves)

    @contextmanager
    def _opened(self, peer: str, rtt_s: float) -> Iterator[tuple[int, int]]:
        """Give the ports at which the sink and the source are reached."""
        if peer == LINK:
            with (
                link(self._sink, RATE_BYTES_S, rtt_s, QUEUE_BYTES) as sink,
                link(self._source, RATE_BYTES_S, rtt_s, QUEUE_BYTES) as source,
            ):
                yield sink, source
            return
        login = self.stage.login(peer)
        with (
            link(login.port, RATE_BYTES_S, rtt_s, QUEUE_BYTES) as port,
            tunnel(peer, login.by(port), [self._sink, self._source]) as opened,
        ):
            yield opened.ports[0], opened.ports[1]

    def _inbound(self, port: int) -> float:
        with visitor(port, "pour"):
            return rate_of(self._arrived[0], self._warm_s, self._seconds)

    def _outbound(self, port: int) -> float:
        with visitor(port, "swallow", self._arrived[1]):
            return rate_of(self._arrived[1], self._warm_s, self._seconds)
