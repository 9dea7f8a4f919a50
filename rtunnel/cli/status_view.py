"""Show what processes tell of themselves: as tables on a terminal, else as lines."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from rtunnel.cli.terminal import harmless
from rtunnel.status.model import (
    CONNECTED,
    LISTENING,
    ConnectionInfo,
    ListenerRow,
    ProcessStatus,
    now,
)

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

# A sparkline shows so many of the last answers.
SAMPLES: Final = 20
BARS: Final = "▁▂▃▄▅▆▇█"
BARS_ASCII: Final = "_.-=#"

# A terminal of so many columns has a place for all; the widths of all but the lines.
WIDE_COLUMNS: Final = 132
FIXED_COLUMNS: Final = 120

_Key = tuple[int, str, str, int]  # process, connection, listener, and its number


class View:
    """Draws the same processes again and again, and remembers what they moved."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = BARS if "utf" in console.encoding else BARS_ASCII
        self._arrow = "→" if "utf" in console.encoding else "->"
        self._moved: dict[_Key, _Moved] = {}

    def draw(self, statuses: list[ProcessStatus]) -> Group:
        """Return a picture of these processes as they are now."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        parts: list[Text | Table | Padding] = []
        for status in statuses:
            parts.append(
                Text.assemble(
                    (f"{status.kind} {status.pid}", "bold"),
                    "  ",
                    ("ready", "green") if status.ready else ("not ready", "bold red"),
                    (f"  up {age(status.started)}, version {status.version}", "dim"),
                    f"  {harmless(status.url)}" if status.url else "",
                )
            )
            for connection in status.connections:
                parts.append(Padding(_headline(connection), (0, 0, 0, 2)))
                if connection.listeners:
                    table = self._table(status.pid, connection)
                    parts.append(Padding(table, (0, 0, 0, 2)))
            if not status.connections:
                parts.append(Text("  no connections", style="dim"))
        return Group(*parts)

    def _table(self, pid: int, connection: ConnectionInfo) -> Table:
        from rich.table import Table
        from rich.text import Text

        # What does not fit beside goes below: the error under the bind, the rate
        # under the count; and there is no room for sparklines.
        wide = self._console.width >= WIDE_COLUMNS
        samples = min(SAMPLES, (self._console.width - FIXED_COLUMNS) // 2)
        table = Table(box=None, pad_edge=True, header_style="dim")
        table.add_column(f"bind {self._arrow} target", overflow="fold", min_width=16)
        table.add_column("state", no_wrap=True)
        for name in ("open/total", "in", "out", "stalled"):
            table.add_column(name, justify="right", no_wrap=True)
        if wide:
            table.add_column("last error", overflow="fold")
        for number, row in enumerate(connection.listeners):
            moved = self._note((pid, connection.name, row.name, number), row)
            place = Text(harmless(f"{row.bind} {self._arrow} {row.target}"))
            error = Text(harmless(row.last_error or ""), "red")
            if not wide and row.last_error:
                place = Text("\n").join((place, error))
            cells = [
                place,
                Text(
                    harmless(row.state),
                    "green" if row.state == LISTENING else "bold red",
                ),
                Text(f"{row.connections_open}/{row.connections_total}"),
                self._traffic(row.bytes_in, moved.rates_in, samples if wide else 0),
                self._traffic(row.bytes_out, moved.rates_out, samples if wide else 0),
                Text(str(row.stalled), "yellow") if row.stalled else Text("-"),
            ]
            table.add_row(*cells, *([error] if wide else []))
        return table

    def _traffic(self, total: int, rates: deque[float], samples: int) -> Text:
        """Return the count and the rate, beside each other with a line of `samples`."""
        from rich.text import Text

        if not rates:
            return Text(size(total))
        rate = f"{size(rates[-1])}/s"
        if not samples:
            return Text.assemble(size(total), "\n", (rate, "dim"))
        shown = list(rates)[-samples:]
        most = max(1.0, *shown)
        last = len(self._bars) - 1
        line = "".join(self._bars[round(each / most * last)] for each in shown)
        return Text.assemble(
            size(total), (f" {rate} ", "dim"), (line.rjust(samples), "cyan")
        )

    def _note(self, key: _Key, row: ListenerRow) -> _Moved:
        moved = self._moved.get(key)
        if moved is None:
            moved = self._moved[key] = _Moved(row)
        else:
            moved.add(row)
        return moved


class _Moved:
    """What one listener has moved, answer by answer."""

    def __init__(self, row: ListenerRow) -> None:
        self.rates_in: deque[float] = deque(maxlen=SAMPLES)
        self.rates_out: deque[float] = deque(maxlen=SAMPLES)
        self._bytes_in = row.bytes_in
        self._bytes_out = row.bytes_out
        self._at_s = time.monotonic()

    def add(self, row: ListenerRow) -> None:
        at_s = time.monotonic()
        seconds = max(at_s - self._at_s, 0.001)
        # Fewer than before: the listener was made anew.
        self.rates_in.append(max(0, row.bytes_in - self._bytes_in) / seconds)
        self.rates_out.append(max(0, row.bytes_out - self._bytes_out) / seconds)
        self._bytes_in, self._bytes_out = row.bytes_in, row.bytes_out
        self._at_s = at_s


def _headline(connection: ConnectionInfo) -> Text:
    from rich.text import Text

    good = connection.state == CONNECTED
    text = Text.assemble(
        (harmless(connection.name), "bold"),
        "  ",
        (harmless(connection.state), "green" if good else "bold red"),
        f"  {', '.join(_facts(connection))}",
    )
    if connection.last_error:
        text.append(f"  {harmless(connection.last_error)}", "red")
    return text


def _facts(connection: ConnectionInfo) -> list[str]:
    facts = []
    if connection.destination and connection.destination != connection.name:
        facts.append(f"server {harmless(connection.destination)}")
    if connection.rtt_s is not None:
        best = connection.rtt_best_s
        at_best = "" if best is None else f" ({best * 1000:.3g} at best)"
        facts.append(f"round trip {connection.rtt_s * 1000:.3g} ms{at_best}")
    facts += [
        harmless(fact) for fact in (connection.cipher, connection.backend) if fact
    ]
    for count, what in (
        (connection.rekeys, "rekey"),
        (connection.reconnects, "reconnect"),
    ):
        facts.append(f"{count} {what}{'' if count == 1 else 's'}")
    if connection.since is not None:
        facts.append(f"since {age(connection.since)}")
    return facts


def lines(status: ProcessStatus) -> list[str]:
    """Return the same as plain lines: the process, its connections, its listeners."""
    ready = "ready" if status.ready else "not ready"
    told = [
        f"{status.kind} {status.pid}: {ready}, up {age(status.started)}, "
        f"version {status.version}{f', {harmless(status.url)}' if status.url else ''}"
    ]
    for connection in status.connections:
        told.append(f"  {_connection_line(connection)}")
        told += [f"    {listener_line(row)}" for row in connection.listeners]
    return told


def _connection_line(connection: ConnectionInfo) -> str:
    facts = ", ".join([harmless(connection.state), *_facts(connection)])
    error = f", last error: {connection.last_error}" if connection.last_error else ""
    return harmless(f"{connection.name}: {facts}{error}")


def listener_line(row: ListenerRow) -> str:
    """Return one listener as a line."""
    parts = [
        row.state,
        f"{row.connections_open} open",
        f"{row.connections_total} total",
        f"{size(row.bytes_in)} in",
        f"{size(row.bytes_out)} out",
    ]
    if row.stalled:
        parts.append(f"{row.stalled} stalled")
    if row.refused or row.errors:
        parts.append(f"{row.refused} refused, {row.errors} errors")
    if row.last_error:
        parts.append(f"last error: {row.last_error}")
    return harmless(f"{row.bind} -> {row.target}: {', '.join(parts)}")


Show = Callable[[list[ProcessStatus]], None]


@contextmanager
def live(*, traffic: bool) -> Iterator[Show]:
    """Show statuses as they come while the block runs, by the function it gets.

    On a terminal as one picture that is drawn anew, and what is logged meanwhile goes
    above it. Elsewhere as plain lines, each when it is another than before; without
    `traffic`, one whose byte counts alone have changed is not.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        changes = Changes(traffic)

        def print_changes(statuses: list[ProcessStatus]) -> None:
            for line in changes.of(statuses):
                click.echo(line)
            sys.stdout.flush()

        yield print_changes
        return
    from rich.live import Live

    view = View(console)
    with Live(console=console, auto_refresh=False) as display:
        yield lambda statuses: display.update(view.draw(statuses), refresh=True)


class Changes:
    """Plain lines for somebody who watches: each one when it is another than before."""

    def __init__(self, traffic: bool) -> None:
        self._traffic = traffic
        # The last line of each, and what makes another one of it.
        self._shown: dict[_Key, tuple[str, object]] = {}

    def of(self, statuses: list[ProcessStatus]) -> list[str]:
        """Return the lines that are new or changed, with the time of now."""
        told: dict[_Key, tuple[str, object]] = {}
        for status in statuses:
            for connection in status.connections:
                head = f"{status.kind} {status.pid}: {harmless(connection.name)}"
                error = f": {connection.last_error}" if connection.last_error else ""
                line = harmless(f"{head}: {connection.state}{error}")
                told[status.pid, connection.name, "", -1] = line, line
                for number, row in enumerate(connection.listeners):
                    key = (status.pid, connection.name, row.name, number)
                    still = row if self._traffic else replace(row, **_NO_TRAFFIC)
                    told[key] = f"{head}: {listener_line(row)}", still
        changed = [
            line
            for key, (line, what) in told.items()
            if key not in self._shown or self._shown[key][1] != what
        ]
        for key, (line, _) in self._shown.items():
            if key not in told:
                changed.append(f"gone: {line}")
        self._shown = told
        at = now().strftime("%H:%M:%SZ")
        return [f"{at} {line}" for line in changed]


_NO_TRAFFIC: Final[dict[str, Any]] = {"bytes_in": 0, "bytes_out": 0, "stalled": 0}


def size(count: float) -> str:
    """Return a count of bytes for people: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            digits = 0 if unit == "B" or count >= 100 else 1
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def age(since: datetime) -> str:
    """Return how long ago that was, for people: `3 min 2 s`."""
    seconds = max(0, int((now() - since).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
