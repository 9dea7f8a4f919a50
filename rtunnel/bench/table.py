"""The figures of a run as text: for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Callable

from rtunnel.bench.results import Figure, Report, Result

LEGEND = (
    "Medians of the rounds. (1.50x) behind a peer's figure: that of rtunnel is 1.50 "
    "times it,\nthe median of the ratios round by round. inbound: from the visitor to "
    "the target;\noutbound: from the target to the visitor."
)


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    for least, digits in ((100, 0), (10, 1), (0.1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}" if value else "0"


def ratio(value: float) -> str:
    """Return a ratio as it is shown everywhere."""
    return f"{value:.2f}x"


def cell(result: Result, peer: str, figure: Figure) -> str:
    """Return the median, and how ours compares with it."""
    median = result.median(peer, figure)
    if median is None:
        return "-"
    ours = result.ratio(peer, figure)
    return number(median) if ours is None else f"{number(median)} ({ratio(ours)})"


def parameters(result: Result) -> str:
    """Return what a scenario was measured with, in one line."""
    return "; ".join(
        f"{name}: {value if isinstance(value, str) else f'{value:.10g}'}"
        for name, value in result.parameters.items()
    )


def text(report: Report) -> str:
    """Lay a run out for a terminal."""
    parts = [
        "\n".join(f"{name:10} {value}" for name, value in report.environment.items())
    ]
    parts += [_section(result, _columns, heading="{}") for result in report.results]
    return "\n\n".join([*parts, LEGEND])


def markdown(report: Report) -> str:
    """Lay a run out in Markdown."""
    rows = [["", ""], *([name, value] for name, value in report.environment.items())]
    parts = [_pipes(rows), LEGEND]
    parts += [_section(result, _pipes, heading="### {}\n") for result in report.results]
    return "\n\n".join(parts)


def _section(
    result: Result, lay_out: Callable[[list[list[str]]], str], heading: str
) -> str:
    rows = [["", *result.peers]]
    for figure in result.figures:
        cells = [cell(result, peer, figure) for peer in result.peers]
        rows.append([figure.title, *cells])
    lines = [heading.format(result.title), f"({parameters(result)})"]
    lines += [f"({note})" for note in result.notes]
    return "\n".join([*lines, "", lay_out(rows)])


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def _pipes(rows: list[list[str]]) -> str:
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
