"""Bulk over loopback, one channel: throughput, and what it costs the client in CPU."""

from __future__ import annotations

from rtunnel.bench import floor
from rtunnel.bench.results import Figure, Parameters, Sample
from rtunnel.bench.scenario import Scenario, Settings, Stage, moving, tunnel

FLOOR = "floor"


class Bulk(Scenario):
    """Bulk data through one channel, one direction after the other.

    The floor is not a tunnel: a process that copies from one socket to another (recv
    and send, 256 KiB), plus the time that libcrypto needs for AES-128-GCM alone.
    """

    name = "bulk"
    title = "Bulk over loopback, one channel"
    figures = (
        Figure("inbound", "MB/s", more_is_better=True),
        Figure("outbound", "MB/s", more_is_better=True),
        Figure("inbound CPU", "s/GB"),
        Figure("outbound CPU", "s/GB"),
    )
    references = (FLOOR,)

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._count = int(settings.pick(1_000_000_000, 16_000_000))
        self._targets = {
            kind: stage.target(kind, self._count) for kind in ("sink", "source")
        }

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {"MB each way": self._count // 1_000_000, **floor.parameters()}

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        figures: dict[str, float] = {}
        for direction, kind, action in (
            ("inbound", "sink", "send"),
            ("outbound", "source", "receive"),
        ):
            target = self._targets[kind]
            if peer == FLOOR:
                copying = floor.copying(target, action, self._count)
                sealing = direction == "outbound"
                figures[f"{direction} CPU"] = 1e9 * (
                    copying + floor.gcm(sealing=sealing)
                )
                continue
            with tunnel(peer, self.stage.sshd.login, [target]) as opened:
                before_s = opened.client.cpu_s()
                with moving(peer, opened.ports[0], action, self._count) as seconds:
                    used_s = opened.client.cpu_s() - before_s
            figures[direction] = self._count / 1e6 / seconds
            figures[f"{direction} CPU"] = used_s / self._count * 1e9
        return Sample(figures)
