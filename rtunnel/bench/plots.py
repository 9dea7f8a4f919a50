"""Plots as SVG, for a page that brings its style sheet along: bars and lines.

Colours are names (`colour_class`) that the style sheet gives meaning to, in light and
in dark. Nothing here knows what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 560
LINES_HEIGHT: Final = 300
BAR_HEIGHT: Final = 20
BAR_STEP: Final = 26
GROUP_HEAD: Final = 24
GROUP_GAP: Final = 12
NAME_WIDTH: Final = 104
# For the text behind the longest bar.
VALUE_WIDTH: Final = 132
LEFT, RIGHT, TOP, BOTTOM = 62, 40, 12, 44
MOST_TICKS: Final = 6

# Who is drawn how, in every plot of a page; others share the last one.
COLOURS: Final = ("rtunnel", "ssh", "asyncssh", "paramiko", "own gateway")


def colour_class(peer: str) -> str:
    """Return the class of the style sheet for whatever shows this peer."""
    number = COLOURS.index(peer) if peer in COLOURS else len(COLOURS)
    return f"peer{number}"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: whose it is, how long, from where to where the rounds went."""

    peer: str
    value: float
    least: float
    most: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a plot of lines."""

    title: str
    logarithmic: bool = False
    # Values that get a line of their own, with a name.
    marks: tuple[tuple[float, str], ...] = ()


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Draw bars from left to right, in groups that share a scale and have a head."""
    longest = max((bar.most for _, group in groups for bar in group), default=1) or 1
    room = WIDTH - NAME_WIDTH - VALUE_WIDTH
    parts: list[str] = []
    y = 0.0
    for head, group in groups:
        parts.append(_text(0, y + 15, head, "head"))
        y += GROUP_HEAD
        for bar in group:
            long = max(bar.value / longest * room, 1)
            middle = y + BAR_HEIGHT / 2
            least, most = (
                NAME_WIDTH + value / longest * room for value in (bar.least, bar.most)
            )
            parts += [
                _text(NAME_WIDTH - 8, middle + 4, bar.peer, "name"),
                f'<rect class="{colour_class(bar.peer)}" x="{NAME_WIDTH}" y="{y:.1f}"'
                f' width="{long:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
                f'<path class="spread" d="M{least:.1f} {middle:.1f}H{most:.1f}"/>',
                _text(max(most, NAME_WIDTH + long) + 7, middle + 4, bar.text, "value"),
            ]
            y += BAR_STEP
        y += GROUP_GAP
    return _svg(y - GROUP_GAP, parts, title)


def lines(
    series: dict[str, Sequence[tuple[float, float]]],
    x_axis: Axis,
    y_axis: Axis,
    title: str,
    *,
    dots: bool = True,
) -> str:
    """Draw a line for each peer; `dots` shows, and names, the points that it is of."""
    points = [point for line in series.values() for point in line]
    across = _Scale(x_axis, [x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Scale(y_axis, [y for _, y in points], LINES_HEIGHT - BOTTOM, TOP)
    parts = [
        _grid(across, up),
        _text(WIDTH / 2, LINES_HEIGHT - 6, x_axis.title, "axis"),
        f'<text class="axis" transform="translate(13 {LINES_HEIGHT / 2 - 16:.0f})'
        f' rotate(-90)">{escape(y_axis.title)}</text>',
    ]
    # Ours last, on top of the others.
    for peer, line in reversed(series.items()):
        places = [(across.at(x), up.at(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{colour_class(peer)}" points="{path}"/>')
        if not dots:
            continue
        for (x, y), (place_x, place_y) in zip(line, places, strict=True):
            hint = escape(f"{peer}: {short(y)} at {short(x)}")
            parts.append(
                f'<circle class="{colour_class(peer)}" cx="{place_x:.1f}"'
                f' cy="{place_y:.1f}" r="3.5"><title>{hint}</title></circle>'
            )
    return _svg(LINES_HEIGHT, parts, title)


def short(value: float) -> str:
    """Return a number for an axis: no more digits than it needs."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


class _Scale:
    """Where values of an axis are on the drawing, and which get a tick."""

    def __init__(
        self, axis: Axis, values: Sequence[float], begin: float, end: float
    ) -> None:
        self.axis = axis
        self._begin, self._end = begin, end
        if axis.logarithmic:
            positive = [value for value in values if value > 0] or [1.0]
            self._low, self._high = min(positive), max(positive)
            if self._high < self._low * 10:
                middle = math.sqrt(self._low * self._high)
                self._low, self._high = middle / 3.5, middle * 3.5
            self.ticks = _log_ticks(self._low, self._high)
        else:
            self._low = 0.0
            step = _nice_step(max([*values, 0.0]) or 1.0)
            self._high = math.ceil((max([*values, 0.0]) or 1.0) / step) * step
            count = round(self._high / step)
            self.ticks = [number * step for number in range(count + 1)]

    def at(self, value: float) -> float:
        if self.axis.logarithmic:
            low, high = math.log(self._low), math.log(self._high)
            part = (math.log(max(value, self._low)) - low) / (high - low)
        else:
            part = (value - self._low) / (self._high - self._low)
        return self._begin + part * (self._end - self._begin)


def _nice_step(most: float) -> float:
    rough = most / MOST_TICKS
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= rough)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [10.0**power * step for power in powers for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= 2 * MOST_TICKS:
            break
    return ticks


def _grid(across: _Scale, up: _Scale) -> str:
    bottom, top = LINES_HEIGHT - BOTTOM, TOP
    left, right = LEFT, WIDTH - RIGHT
    parts = []
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(left - 7, y + 4, short(tick), "name"))
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}V{top}"/>')
        parts.append(_text(x, bottom + 17, short(tick), "axis"))
    for value, name in up.axis.marks:
        y = up.at(value)
        parts.append(f'<path class="mark" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(right + 5, y + 4, name, "value"))
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
        f' aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
