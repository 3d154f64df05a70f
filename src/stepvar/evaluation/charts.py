"""Plots as inline SVG: small, self-contained, readable in light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 40, 55
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b", "#5d7a1f", "#777777")
"""After Okabe and Ito: told apart by most eyes."""

SHAPES = ("circle", "square", "diamond", "triangle")
ROW = 15
LONGEST = 27
"""Letters of a name that the legend has room for."""


@dataclass(frozen=True)
class Point:
    """A value with its intervals, and what a pointer over it says."""

    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    title: str


@dataclass(frozen=True)
class Series:
    """Points of one method, joined by a line in the order of x; ``number`` chooses its colour and mark."""

    label: str
    points: Sequence[Point]
    number: int = 0


@dataclass(frozen=True)
class Axis:
    """A range of numbers on a range of pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """With a little room around the values."""
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 6) -> list[float]:
        """Round numbers inside the range."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / about))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= about)
        first = math.ceil(self.low / step)
        return [round(step * index, 10) for index in range(first, math.floor(self.high / step) + 1)]


def scatter(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    front: Sequence[tuple[float, float]] = (),
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """Quality against speed-up: points with intervals, a line per method, the front drawn, levels across.

    Args:
        front: points (x, y) of the Pareto front, by x.
        levels: horizontal lines with a name, such as the noise floor.
    """
    points = [point for one in series for point in one.points]
    x = Axis.over([value for point in points for value in point.x_range], LEFT, WIDTH - RIGHT)
    values = [value for point in points for value in point.y_range] + [level for _, level in levels]
    y = Axis.over(values, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, x_label, y_label, x, y)]
    for name, level in levels:
        parts.append(_line([(x.start, y.at(level)), (x.end, y.at(level))], "#888888", dashed=True))
        parts.append(_text(x.end - 4, y.at(level) - 4, name, "end", 11))
    if len(front) > 1:
        parts.append(_line([(x.at(a), y.at(b)) for a, b in front], "#999999", width=7, opacity=0.35))
    for place, one in enumerate(series):
        colour, shape = COLOURS[one.number % len(COLOURS)], SHAPES[one.number // len(COLOURS) % len(SHAPES)]
        ordered = sorted(one.points, key=lambda point: point.x)
        if len(ordered) > 1:
            parts.append(_line([(x.at(point.x), y.at(point.y)) for point in ordered], colour))
        for point in ordered:
            parts.append(_point(point, x, y, colour, shape))
        parts += _legend(place, one.label, colour, shape)
    return _svg(parts, HEIGHT)


def forest(title: str, x_label: str, rows: Sequence[tuple[str, Sequence[Point]]], labels: Sequence[str]) -> str:
    """One row per question, one dot with its interval per method, and a line at zero.

    Args:
        rows: (name, one point per label); only ``x`` and ``x_range`` of the points are used.
        labels: of the methods.
    """
    line = max(ROW * len(labels), 30) / len(labels) * 0.8
    height = int(TOP + BOTTOM + len(rows) * (line * len(labels) + 16))
    values = [value for _, points in rows for point in points for value in point.x_range]
    x = Axis.over([*values, 0.0], LEFT + 70, WIDTH - RIGHT)
    y = Axis(0, 1, height - BOTTOM, TOP)
    parts = [_frame(title, x_label, "", x, y, y_ticks=False)]
    parts.append(_line([(x.at(0), y.start), (x.at(0), y.end)], "#888888", dashed=True))
    place = TOP + 12.0
    for name, points in rows:
        parts.append(_text(x.start - 8, place + line * (len(labels) - 1) / 2 + 4, name, "end", 12))
        for number, point in enumerate(points):
            colour = COLOURS[number % len(COLOURS)]
            low, high = (x.at(value) for value in point.x_range)
            parts.append(_line([(low, place), (high, place)], colour))
            parts.append(_mark(x.at(point.x), place, "circle", colour, point.title))
            place += line
        place += 16
    for number, label in enumerate(labels):
        parts += _legend(number, label, COLOURS[number % len(COLOURS)], "circle")
    return _svg(parts, height)


def _svg(parts: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>' + "".join(parts) + "</svg>"
    )


def _frame(title: str, x_label: str, y_label: str, x: Axis, y: Axis, y_ticks: bool = True) -> str:
    parts = [_text(x.start, 22, title, "start", 15, bold=True)]
    for value in x.ticks():
        parts.append(_line([(x.at(value), y.start), (x.at(value), y.end)], "#e4e4e8"))
        parts.append(_text(x.at(value), y.start + 17, f"{value:g}", "middle"))
    for value in y.ticks() if y_ticks else []:
        parts.append(_line([(x.start, y.at(value)), (x.end, y.at(value))], "#e4e4e8"))
        parts.append(_text(x.start - 7, y.at(value) + 4, f"{value:g}", "end"))
    parts.append(_line([(x.start, y.end), (x.start, y.start), (x.end, y.start)], "#555555"))
    parts.append(_text((x.start + x.end) / 2, y.start + 40, x_label, "middle", 13))
    middle = (y.start + y.end) / 2
    parts.append(
        f'<text transform="translate(18 {middle:.1f}) rotate(-90)" text-anchor="middle" font-size="13" '
        f'fill="#222222">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _point(point: Point, x: Axis, y: Axis, colour: str, shape: str) -> str:
    across = [(x.at(value), y.at(point.y)) for value in point.x_range]
    along = [(x.at(point.x), y.at(value)) for value in point.y_range]
    whiskers = _line(across, colour, opacity=0.6) + _line(along, colour, opacity=0.6)
    return whiskers + _mark(x.at(point.x), y.at(point.y), shape, colour, point.title)


def _legend(number: int, label: str, colour: str, shape: str) -> list[str]:
    top, label = TOP + 8 + number * (ROW + 3), label if len(label) <= LONGEST else label[: LONGEST - 3] + "..."
    return [_mark(WIDTH - RIGHT + 18, top, shape, colour, label), _text(WIDTH - RIGHT + 30, top + 4, label, "start")]


def _mark(x: float, y: float, shape: str, colour: str, title: str) -> str:
    outlines: dict[str, list[tuple[float, float]]] = {
        "square": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
        "diamond": [(0, -6), (6, 0), (0, 6), (-6, 0)],
        "triangle": [(0, -5.5), (5.5, 4.5), (-5.5, 4.5)],
    }
    tip = f"<title>{escape(title)}</title>"
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">{tip}</circle>'
    corners = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in outlines[shape])
    return f'<polygon points="{corners}" fill="{colour}">{tip}</polygon>'


def _line(
    points: Sequence[tuple[float, float]], colour: str, width: float = 1.5, opacity: float = 1.0, dashed: bool = False
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"{dash}/>'
    )


def _text(x: float, y: float, text: str, anchor: str, size: int = 12, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight} fill="#222222">'
        f"{escape(text)}</text>"
    )
