"""Line charts as inline SVG.

The horizontal axis is linear (cost or tokens). The vertical axis is logarithmic and shows a positive figure.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 860.0, 400.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 138.0, 14.0, 50.0

_SMALLEST = 1e-12
"""Smallest value that sets the range of the vertical axis; smaller ones count as zero."""


@dataclass(frozen=True)
class Mark:
    """One value of a series.

    Attributes:
        x: value on the horizontal axis.
        y: value on the vertical axis; zero and negative values are drawn on the lower edge.
        low: lower end of the confidence interval, or None.
        high: upper end of the confidence interval, or None.
        tooltip: lines of text that a browser shows under the pointer; empty for none.
        selects: id of the radio button that a click on the mark checks; empty for none.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tooltip: str = ""
    selects: str = ""


@dataclass(frozen=True)
class Series:
    """Marks joined by a line, with the name of the series at the right.

    Attributes:
        name: text shown to the right of the chart.
        style: CSS classes that give the colour and the dashes.
        marks: at least one mark, in order of `x`.
        shape: shape of the marks, `circle`, `square` or `diamond`; empty for a line without marks.
        steps: whether the line is a staircase, on which a value holds until the next mark.
    """

    name: str
    style: str
    marks: tuple[Mark, ...]
    shape: str = "circle"
    steps: bool = False


def chart(series: Sequence[Series], x_title: str, y_title: str, label: str) -> str:
    """Return a chart as one SVG element.

    Args:
        series: series to draw, the last one on top.
        x_title: title of the horizontal axis.
        y_title: title of the vertical axis.
        label: description of the chart for screen readers.
    """
    frame = _Frame(series)
    body = [frame.grid(x_title, y_title), *(frame.line(one) for one in series)]
    body += [frame.marks(one) for one in series]
    body.append(frame.names(series))
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return about `count` round numbers between `low` and `high`, at equal distances."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two positive values.

    Under three decades they are 1, 2 and 5 times the powers of ten, otherwise the powers of ten only. Under 0.7
    decades they are those of `linear_ticks`.
    """
    decades = math.log10(high / low)
    if decades < 0.7:
        return linear_ticks(low, high, 5)
    steps = (1, 2, 5) if decades < 3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]


def compact(value: float) -> str:
    """Return a number as text of about six characters at most: 3.25, 0.0012, 65.5k, 1.2M."""
    for power, suffix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10.0**power and (power > 3 or abs(value) >= 10_000):
            return f"{value / 10.0**power:.3g}{suffix}"
    return f"{value:.4g}"


class _Frame:
    """The axes of a chart, which turn values into positions, and the SVG of the chart's parts."""

    def __init__(self, series: Sequence[Series]) -> None:
        marks = [mark for one in series for mark in one.marks]
        self.x = _padded([mark.x for mark in marks], least=0.05)
        ends = (end for mark in marks for end in (mark.y, mark.low, mark.high))
        positive = [end for end in ends if end is not None and _SMALLEST <= end < math.inf] or [1.0]
        low, high = _padded([math.log10(value) for value in positive], least=0.0)
        self.y = (10.0**low, 10.0**high)

    def across(self, x: float) -> float:
        low, high = self.x
        return _LEFT + (x - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def up(self, y: float) -> float:
        low, high = self.y
        share = math.log(min(max(y, low), high) / low) / math.log(high / low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def grid(self, x_title: str, y_title: str) -> str:
        right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        parts = []
        for value in log_ticks(*self.y):
            y = self.up(value)
            parts.append(f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{right:g}"/>')
            parts.append(
                f'<text class="tick" x="{_LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
            )
        for value in linear_ticks(*self.x):
            x = self.across(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {floor:g}v5"/>')
            label = compact(value)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{floor + 19:g}" text-anchor="middle">{label}</text>'
            )
        middle = (_LEFT + right) / 2
        parts.append(f'<path class="axis" d="M{_LEFT:g} {floor:g}H{right:g}"/>')
        parts.append(
            f'<text class="title" x="{middle:g}" y="{HEIGHT - 8:g}" text-anchor="middle">{escape(x_title)}</text>'
        )
        turn = f'transform="translate(14 {(_TOP + floor) / 2:g}) rotate(-90)"'
        parts.append(f'<text class="title" {turn} text-anchor="middle">{escape(y_title)}</text>')
        return "".join(parts)

    def line(self, series: Series) -> str:
        points = [(self.across(mark.x), self.up(mark.y)) for mark in series.marks]
        join = "H{0:.1f}V{1:.1f}" if series.steps else "L{0:.1f} {1:.1f}"
        path = "M{:.1f} {:.1f}".format(*points[0]) + "".join(join.format(*point) for point in points[1:])
        return f'<path class="line {series.style}" d="{path}"/>'

    def marks(self, series: Series) -> str:
        return "".join(self._mark(series, mark) for mark in series.marks) if series.shape else ""

    def _mark(self, series: Series, mark: Mark) -> str:
        x, y = self.across(mark.x), self.up(mark.y)
        whisker = ""
        if mark.low is not None and mark.high is not None:
            top, bottom = self.up(mark.high), self.up(mark.low)
            ends = f"M{x - 4:.1f} {top:.1f}h8M{x - 4:.1f} {bottom:.1f}h8"
            whisker = f'<path class="whisker" d="M{x:.1f} {top:.1f}V{bottom:.1f}{ends}"/>'
        shapes = {
            "circle": f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
            "square": f'<rect class="dot" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>',
            "diamond": f'<path class="dot" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>',
        }
        target = f' data-selects="{escape(mark.selects)}"' if mark.selects else ""
        tooltip = f"<title>{escape(mark.tooltip)}</title>" if mark.tooltip else ""
        reach = f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="14"/>'
        return f'<g class="mark {series.style}"{target}>{tooltip}{whisker}{shapes[series.shape]}{reach}</g>'

    def names(self, series: Sequence[Series]) -> str:
        ends = [(self.across(one.marks[-1].x), self.up(one.marks[-1].y)) for one in series]
        heights = _apart([y for _, y in ends], 17.0, HEIGHT - _BOTTOM)
        parts = []
        for one, (x, y), height in zip(series, ends, heights, strict=True):
            text = f'x="{WIDTH - _RIGHT + 22:g}" y="{height + 4:.1f}"'
            if abs(height - y) > 1 or x < WIDTH - _RIGHT - 40:
                parts.append(
                    f'<path class="leader" d="M{x + 9:.1f} {y:.1f}L{WIDTH - _RIGHT + 18:g} {height:.1f}"/>'
                )
            parts.append(f'<text class="name {one.style}" {text}>{escape(one.name)}</text>')
        return "".join(parts)


def _padded(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return the range of `values` with a margin on both sides.

    The margin is at least `least` times the largest absolute value, so that nearly equal values are not magnified.
    """
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), least * max(abs(low), abs(high))) or 1.0
    return low - margin, high + margin


def _apart(heights: Iterable[float], gap: float, floor: float) -> list[float]:
    """Move heights so that neighbours are at least `gap` apart and none lies below `floor` (positions grow downwards).

    Returns:
        The new heights, in the given order.
    """
    given = list(heights)
    order = sorted(range(len(given)), key=lambda i: (given[i], i))
    placed = list(given)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    limit = floor
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed
