"""The figures of a run as one HTML page: plots, tables, where and how to run it again.

Everything is in the file. It is readable without JavaScript, in light and in dark, and
on paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

from rtunnel.bench import table
from rtunnel.bench.plots import Axis, Bar, bars, colour_class, lines
from rtunnel.bench.results import OURS, Figure, Point, Report, Result
from rtunnel.bench.scenarios import idle, latency, mixed, wan

# What is told first: scenario, figure, the peer to compare with, and in words.
AT_A_GLANCE: Final = (
    ("bulk", "inbound", "ssh", "throughput of ssh -R, inbound"),
    ("bulk", "outbound", "ssh", "throughput of ssh -R, outbound"),
    ("bulk", "inbound CPU", "ssh", "CPU time of ssh -R for a gigabyte, inbound"),
    ("bulk", "outbound CPU", "ssh", "CPU time of ssh -R for a gigabyte, outbound"),
    ("latency", "p50", "ssh", "round trip of ssh -R"),
    ("wan", "inbound", "ssh", "throughput of ssh -R at 100 ms, inbound"),
    ("mixed", "outbound: p50", "ssh", "round trip of ssh -R beside an upload"),
    ("mixed", "inbound: p50", "ssh", "round trip of ssh -R beside a download"),
    ("rate", "connections", "ssh", "short connections of ssh -R"),
    ("idle", "resident memory a channel", "ssh", "memory of ssh -R for a channel"),
    ("relay", "CPU", "socat", "CPU time of socat, socket to socket"),
    ("sftp", "get", "paramiko", "SFTP get of paramiko.Transport"),
)

PERCENT: Final = Axis("% of the round trips", marks=((50, "p50"), (99, "p99")))

STYLE: Final = """
:root { color-scheme: light dark; --page: #fff; --card: #f7f8fa; --text: #1c2430;
  --dim: #5b6675; --line: #dde2e9; --peer0: #0b62c4; --peer1: #e08a00;
  --peer2: #0a8f6a; --peer3: #c0558f; --peer4: #58aee8; --peer5: #8a94a3; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029;
  --text: #e4e9f0; --dim: #98a4b4; --line: #2d3643; --peer0: #5aa7f5;
  --peer1: #f2ac3c; --peer2: #39c79b; --peer3: #e58fbc; --peer4: #a5d4f7;
  --peer5: #7d8897; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem;
  background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.25rem; margin: 0 0 .2rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 600; }
p { margin: .3rem 0; } .dim, .parameters { color: var(--dim); }
.parameters { font-size: .85rem; } section { margin-top: 2.8rem; }
code, pre { font: .86em/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem .8rem; overflow-x: auto; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem;
  margin: 1rem 0; font-size: .88rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.over { margin: 1.6rem 0 .6rem; font-weight: 600; }
.glance { display: grid; gap: .8rem; margin: 0 0 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
.glance div { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem .8rem; font-size: .83rem; color: var(--dim); }
.glance b { display: block; font-size: 1.45rem; color: var(--peer0);
  font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); }
figure { margin: 0; padding: .9rem 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; break-inside: avoid;
  max-width: 40rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin-bottom: .4rem;
  font-size: .82rem; color: var(--dim); }
.legend i { display: inline-block; width: 1.1rem; height: .25rem; margin-right: .4rem;
  border-radius: 2px; vertical-align: .2rem; }
svg { display: block; width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--dim); } svg .head { fill: var(--text); font-weight: 600; }
svg .name { text-anchor: end; } svg .axis { text-anchor: middle; }
svg .value { fill: var(--text); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); fill: none; }
svg .mark { stroke: var(--dim); stroke-dasharray: 2 4; fill: none; }
svg .spread { stroke: var(--text); stroke-width: 1.5; opacity: .55; }
svg polyline { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg polyline.peer4 { stroke-dasharray: 7 4; }
svg polyline.peer5 { stroke-dasharray: 2 4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; min-width: 34rem; }
th, td { padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line);
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td span { color: var(--dim); } td.ours { font-weight: 600; }
"""


def draw(report: Report) -> str:
    """Return the page."""
    head = report.environment
    body = [
        "<h1>rtunnel bench</h1>",
        f'<p class="dim">rtunnel {escape(head.get("rtunnel", ""))}, '
        f"{escape(head.get('date', ''))}</p>",
        _glance(report),
        "<p>Medians of the rounds; the thin line at a bar goes from the least to the "
        "greatest of them. <em>inbound</em>: from the visitor to the target; "
        "<em>outbound</em>: from the target to the visitor. A ratio is that of rtunnel "
        "over the other, the median of the ratios round by round.</p>",
        _environment(report),
        *(_section(result) for result in report.results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rtunnel bench</title><style>{STYLE}{_peer_styles()}</style></head>"
        f"<body>\n{''.join(body)}\n</body></html>\n"
    )


def _peer_styles() -> str:
    return "".join(
        f"rect.peer{n}, circle.peer{n} {{ fill: var(--peer{n}); }} "
        f"polyline.peer{n} {{ stroke: var(--peer{n}); }} "
        f"i.peer{n} {{ background: var(--peer{n}); }}\n"
        for n in range(6)
    )


def _glance(report: Report) -> str:
    results = {result.scenario: result for result in report.results}
    tiles = []
    for scenario, name, peer, words in AT_A_GLANCE:
        result = results.get(scenario)
        if result is None or peer not in result.peers:
            continue
        figure = next(figure for figure in result.figures if figure.name == name)
        value = result.ratio(peer, figure)
        if value is not None:
            tiles.append(f"<div><b>{table.ratio(value)}</b>{escape(words)}</div>")
    if not tiles:
        return ""
    return (
        '<p class="over">rtunnel against the others, where 1.00x is as much as they'
        f'</p><div class="glance">{"".join(tiles)}</div>'
    )


def _environment(report: Report) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in report.environment.items()
        if name != "command"
    )
    command = report.environment.get("command", "rtunnel bench")
    again = f"{command} --json figures.json --report figures.html"
    return f"<dl>{rows}</dl><h3>To run it again</h3><pre>{escape(again)}</pre>"


def _section(result: Result) -> str:
    plots = PLOTS.get(result.scenario)
    drawn = "".join(plots(result)) if plots else ""
    notes = "".join(f'<p class="dim">{escape(note)}</p>' for note in result.notes)
    return (
        f'<section id="{result.scenario}"><h2>{escape(result.title)}</h2>'
        f'<p class="parameters">{escape(table.parameters(result))}</p>{notes}'
        f'<div class="plots">{drawn}</div>{_table(result)}</section>\n'
    )


def _table(result: Result) -> str:
    head = "".join(f"<th>{escape(peer)}</th>" for peer in result.peers)
    rows = []
    for figure in result.figures:
        cells = []
        for peer in result.peers:
            value, _, ratio = table.cell(result, peer, figure).partition(" ")
            kind = ' class="ours"' if peer == OURS else ""
            ratio = f" <span>{escape(ratio)}</span>" if ratio else ""
            cells.append(f"<td{kind}>{escape(value)}{ratio}</td>")
        rows.append(f"<tr><td>{escape(figure.title)}</td>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# -- plots -----------------------------------------------------------------------------


def _bars(result: Result, title: str, unit: str, names: Sequence[str]) -> str:
    """Draw the figures of these names as groups of bars, which have one unit."""
    groups = []
    for figure in result.figures:
        if figure.name not in names:
            continue
        group = [bar for peer in result.peers if (bar := _bar(result, peer, figure))]
        groups.append((figure.name, group))
    return _figure(f"{title}, {unit}", bars(groups, title))


def _bar(result: Result, peer: str, figure: Figure) -> Bar | None:
    median, spread = result.median(peer, figure), result.spread(peer, figure)
    if median is None or spread is None:
        return None
    ratio = result.ratio(peer, figure)
    text = table.number(median) + (f"  ({table.ratio(ratio)})" if ratio else "")
    return Bar(peer, median, *spread, text)


def _curve(
    result: Result, name: str, x: Axis, y: Axis, *, factor: float = 1, dots: bool = True
) -> str:
    """Draw a curve of each peer; x times `factor` is in the unit of its axis."""
    series: dict[str, Sequence[Point]] = {
        peer: [(x * factor, y) for x, y in points]
        for peer, points in result.curves.get(name, {}).items()
    }
    if not series:
        return ""
    legend = "".join(
        f'<span><i class="{colour_class(peer)}"></i>{escape(peer)}</span>'
        for peer in series
    )
    drawing = lines(series, x, y, name, dots=dots)
    title = name[0].upper() + name[1:]
    return _figure(title, f'<div class="legend">{legend}</div>{drawing}')


def _figure(title: str, content: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{content}</figure>"


def _bulk(result: Result) -> Iterable[str]:
    yield _bars(result, "Throughput", "MB/s", ("inbound", "outbound"))
    cpu = ("inbound CPU", "outbound CPU")
    yield _bars(result, "CPU time of the client", "s/GB", cpu)


def _latency(result: Result) -> Iterable[str]:
    x = Axis("µs", logarithmic=True)
    yield _curve(result, latency.CURVE, x, PERCENT, factor=1e6, dots=False)
    yield _bars(result, "Half come back within", "µs", ("p50",))
    yield _bars(result, "99 % come back within", "µs", ("p99",))


def _wan(result: Result) -> Iterable[str]:
    x, y = Axis("round trip, ms", logarithmic=True), Axis("MB/s")
    yield _curve(result, wan.INBOUND_CURVE, x, y)
    yield _curve(result, wan.OUTBOUND_CURVE, x, y)


def _mixed(result: Result) -> Iterable[str]:
    x = Axis("ms", logarithmic=True)
    for name in (*mixed.CURVES.values(), mixed.IDLE_CURVE):
        yield _curve(result, name, x, PERCENT, factor=1000, dots=False)
    names = [f"{direction}: bulk" for direction in mixed.CURVES]
    yield _bars(result, "Bulk meanwhile", "MB/s", names)


def _rate(result: Result) -> Iterable[str]:
    yield _bars(result, "Short connections", "1/s", ("connections",))
    name = "client's CPU for one"
    yield _bars(result, "CPU time of the client", "µs", (name,))


def _idle(result: Result) -> Iterable[str]:
    linear, x = Axis("channels"), Axis("channels", logarithmic=True)
    yield _curve(result, idle.MEMORY_CURVE, linear, Axis("MiB"))
    time = Axis("µs", logarithmic=True)
    yield _curve(result, idle.COST_CURVE, x, time)
    yield _curve(result, idle.TIME_CURVE, x, time)


def _relay(result: Result) -> Iterable[str]:
    yield _bars(result, "Throughput", "MB/s", ("throughput",))
    yield _bars(result, "CPU time of the relay", "s/GB", ("CPU",))


def _sftp(result: Result) -> Iterable[str]:
    yield _bars(result, "Throughput", "MB/s", ("put", "get"))
    yield _bars(result, "CPU time of the client", "s/GB", ("put CPU", "get CPU"))


PLOTS: Final[dict[str, Callable[[Result], Iterable[str]]]] = {
    "bulk": _bulk,
    "latency": _latency,
    "wan": _wan,
    "mixed": _mixed,
    "rate": _rate,
    "idle": _idle,
    "relay": _relay,
    "sftp": _sftp,
}
