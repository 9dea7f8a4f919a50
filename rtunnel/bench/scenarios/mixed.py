"""A narrow link shared by bulk and by something that must not stutter."""

from __future__ import annotations

import time

from rtunnel.bench.load import ECHO_BYTES, Counter
from rtunnel.bench.results import Figure, Parameters, Sample, percentile
from rtunnel.bench.scenario import Scenario, Settings, Stage, link, tunnel, visitor

RATE_BYTES_S = 2_500_000
RTT_S = 0.04
QUEUE_BYTES = 65_536
INTERVAL_S = 0.01
# What is still in the queues of a transfer that was cut off is gone by then.
PAUSE_S = 3.0
IDLE_CURVE = "round trip on the narrow link, idle"
CURVES = {
    "outbound": "round trip beside an upload",
    "inbound": "round trip beside a download",
}


class Mixed(Scenario):
    """Echo on one channel beside bulk on another, on a narrow link with a short queue.

    A message of 64 bytes leaves every 10 ms. The bulk channel moves all it can:
    outbound (the client uploads), then inbound (it downloads).
    """

    name = "mixed"
    title = "Echo beside bulk: 20 Mbit/s, 40 ms round trip, 64 KiB queue"
    figures = (
        Figure("idle p50", "ms"),
        Figure("idle p99", "ms"),
        *(
            Figure(f"{direction}: {name}", unit, more_is_better=unit == "MB/s")
            for direction in CURVES
            for name, unit in (
                ("p50", "ms"),
                ("p99", "ms"),
                ("p50 over idle p50", "x"),
                ("p99 over idle p50", "x"),
                ("bulk", "MB/s"),
            )
        ),
    )
    against = ("ssh", "asyncssh")

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._warm_s = settings.pick(3.0, 0.5)
        self._seconds = settings.pick(10.0, 0.5)
        self._idle_s = settings.pick(3.0, 0.5)
        self._pause_s = settings.pick(PAUSE_S, 0.0)
        self._arrived = stage.counter()
        self._targets = [
            stage.target("echo"),
            stage.target("source"),
            stage.target("sink", counter=self._arrived),
        ]

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {
            "Mbit/s of the link": RATE_BYTES_S * 8 // 1_000_000,
            "ms of its round trip": RTT_S * 1000,
            "KiB of its queue": QUEUE_BYTES // 1024,
            "bytes of a message": ECHO_BYTES,
            "ms between messages": INTERVAL_S * 1000,
            "seconds measured": self._seconds,
            "seconds before that": self._warm_s,
        }

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        login = self.stage.sshd.login
        with (
            link(login.port, RATE_BYTES_S, RTT_S, QUEUE_BYTES) as port,
            tunnel(peer, login.by(port), self._targets) as opened,
        ):
            echo, source, sink = opened.ports
            with visitor(echo, "beat", INTERVAL_S, 0.0, self._idle_s) as beating:
                beating.read()
                idle_s = sorted(beating.read()["times_s"])
            idle_p50_s = percentile(idle_s, 50)
            figures = {
                "idle p50": idle_p50_s * 1000,
                "idle p99": percentile(idle_s, 99) * 1000,
            }
            times_s = {IDLE_CURVE: idle_s}
            for direction, curve in CURVES.items():
                loaded_s, rate = self._beside(direction, echo, source, sink)
                times_s[curve] = loaded_s
                p50_s, p99_s = percentile(loaded_s, 50), percentile(loaded_s, 99)
                figures |= {
                    f"{direction}: p50": p50_s * 1000,
                    f"{direction}: p99": p99_s * 1000,
                    f"{direction}: p50 over idle p50": p50_s / idle_p50_s,
                    f"{direction}: p99 over idle p50": p99_s / idle_p50_s,
                    f"{direction}: bulk": rate / 1e6,
                }
                time.sleep(self._pause_s)
        return Sample(figures, times_s=times_s)

    def _beside(
        self, direction: str, echo: int, source: int, sink: int
    ) -> tuple[list[float], float]:
        """Return the round trips beside bulk, in order of size, and bulk's rate."""
        beats = (INTERVAL_S, self._warm_s, self._seconds)
        bulk = (
            visitor(sink, "pour")
            if direction == "inbound"
            else visitor(source, "swallow", self._arrived)
        )
        with bulk, visitor(echo, "beat", *beats) as beating:
            beating.read()
            begin, begin_s = Counter.read(self._arrived), time.perf_counter()
            times_s = sorted(beating.read()["times_s"])
            end, end_s = Counter.read(self._arrived), time.perf_counter()
        return times_s, (end - begin) / (end_s - begin_s)
