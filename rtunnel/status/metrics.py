"""The metrics of a process, in the formats that Prometheus reads.

Each scrape asks the source anew: nothing is counted twice, and nothing is kept of a
connection that is gone. `docs/status.md` has the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from rtunnel.status.model import (
    CONNECTED,
    LISTENING,
    ConnectionInfo,
    ListenerRow,
    ProcessStatus,
    StatusSource,
)

CONNECTION: Final = ("connection",)
LISTENER: Final = ("connection", "listener")

# The values of these two are states and texts: one series for each that was seen.
_INFO_OF_CONNECTION: Final = (*CONNECTION, "destination", "state", "backend", "cipher")
_INFO_OF_LISTENER: Final = (*LISTENER, "bind", "target", "state")


class Metrics:
    """What `/metrics` answers. Any thread."""

    def __init__(self, source: StatusSource) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(source))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text, and its type: one that the client's `Accept` names."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector(Collector):
    def __init__(self, source: StatusSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return ()  # the names depend on nothing, but a scrape may not precede a start

    def collect(self) -> Iterator[Metric]:
        status = self._source()
        yield from _of_process(status)
        named = list(_unique(status.connections))
        yield from _of_connections(named)
        yield from _of_listeners(named)


_Named = tuple[str, ConnectionInfo]


def _of_process(status: ProcessStatus) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "rtunnel_build_info", "What runs; always 1.", labels=("version", "kind")
    )
    build.add_metric((status.version, status.kind), 1)
    yield build
    yield GaugeMetricFamily(
        "rtunnel_ready",
        "Whether every listener that should be there listens.",
        value=status.ready,
    )
    yield GaugeMetricFamily(
        "rtunnel_start_time_seconds",
        "When the process began its work, as Unix time.",
        value=status.started.timestamp(),
    )


def _of_connections(named: list[_Named]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "rtunnel_connection_up", "Whether the SSH connection stands.", labels=CONNECTION
    )
    info = GaugeMetricFamily(
        "rtunnel_connection_info",
        "What is known of the SSH connection; always 1.",
        labels=_INFO_OF_CONNECTION,
    )
    rtt = GaugeMetricFamily(
        "rtunnel_connection_rtt_seconds",
        "The last round trip that was measured, the queues of both sides included.",
        labels=CONNECTION,
    )
    rtt_best = GaugeMetricFamily(
        "rtunnel_connection_rtt_best_seconds",
        "The best round trip of this connection: the path without queues.",
        labels=CONNECTION,
    )
    rekeys = CounterMetricFamily(
        "rtunnel_connection_rekeys",
        "Key exchanges after the first.",
        labels=CONNECTION,
    )
    reconnects = CounterMetricFamily(
        "rtunnel_connection_reconnects",
        "Connections made after the first.",
        labels=CONNECTION,
    )
    for name, connection in named:
        up.add_metric((name,), connection.state == CONNECTED)
        info.add_metric(
            (
                name,
                connection.destination,
                connection.state,
                connection.backend or "",
                connection.cipher or "",
            ),
            1,
        )
        if connection.rtt_s is not None:
            rtt.add_metric((name,), connection.rtt_s)
        if connection.rtt_best_s is not None:
            rtt_best.add_metric((name,), connection.rtt_best_s)
        rekeys.add_metric((name,), connection.rekeys)
        reconnects.add_metric((name,), connection.reconnects)
    yield from (up, info, rtt, rtt_best, rekeys, reconnects)


def _of_listeners(named: list[_Named]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "rtunnel_listener_up", "Whether the server listens for it.", labels=LISTENER
    )
    info = GaugeMetricFamily(
        "rtunnel_listener_info",
        "What is known of the listener; always 1.",
        labels=_INFO_OF_LISTENER,
    )
    connections = GaugeMetricFamily(
        "rtunnel_listener_connections",
        "Connections of visitors that are open.",
        labels=LISTENER,
    )
    stalled = GaugeMetricFamily(
        "rtunnel_listener_stalled_connections",
        "Open connections that wait for window of the far side.",
        labels=LISTENER,
    )
    accepted = CounterMetricFamily(
        "rtunnel_listener_accepted",
        "Connections of visitors that were accepted.",
        labels=LISTENER,
    )
    refused = CounterMetricFamily(
        "rtunnel_listener_refused", "Visitors that were turned away.", labels=LISTENER
    )
    errors = CounterMetricFamily(
        "rtunnel_listener_errors",
        "Dead targets and handlers that failed.",
        labels=LISTENER,
    )
    moved = CounterMetricFamily(
        "rtunnel_listener_bytes",
        "Payload: in is from visitors to targets, out the other way.",
        labels=(*LISTENER, "direction"),
    )
    for labels, row in _rows(named):
        up.add_metric(labels, row.state == LISTENING)
        info.add_metric((*labels, row.bind, row.target, row.state), 1)
        connections.add_metric(labels, row.connections_open)
        stalled.add_metric(labels, row.stalled)
        accepted.add_metric(labels, row.connections_total)
        refused.add_metric(labels, row.refused)
        errors.add_metric(labels, row.errors)
        moved.add_metric((*labels, "in"), row.bytes_in)
        moved.add_metric((*labels, "out"), row.bytes_out)
    yield from (up, info, connections, stalled, accepted, refused, errors, moved)


def _rows(named: list[_Named]) -> Iterator[tuple[tuple[str, str], ListenerRow]]:
    for name, connection in named:
        seen: Counter[str] = Counter()
        for row in connection.listeners:
            yield (name, _numbered(row.name, seen)), row


def _unique(connections: tuple[ConnectionInfo, ...]) -> Iterator[_Named]:
    seen: Counter[str] = Counter()
    for connection in connections:
        yield _numbered(connection.name, seen), connection


def _numbered(name: str, seen: Counter[str]) -> str:
    """Return the name, with a number from the second use on.

    Prometheus refuses a whole scrape that has one series twice.
    """
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"
