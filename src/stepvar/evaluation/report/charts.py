"""Charts as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepvar.evaluation.statistics import pareto_front
from stepvar.utils.require import require

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b", "#5d7a1f", "#777777")
"""After Okabe and Ito: told apart by most eyes."""

SHAPES = ("o", "s", "D", "^")
WIDTH = 5.2
"""Inches; narrow, so that the letters stay readable on a phone."""

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e8",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Point:
    """A value with its intervals."""

    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]


def scatter(
    title: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    order: Sequence[str],
    levels: Sequence[tuple[str, float]] = (),
    lower_is_better: bool = False,
    x_label: str = "speed-up of the loop over scales, measured",
) -> str:
    """Quality against speed-up: points with intervals, a line per method, and the Pareto front of all points.

    Args:
        series: points by the name of their method.
        order: of all names, so that a method has one colour and mark in all charts.
        levels: horizontal lines with a name, such as the noise floor.
    """
    with require("matplotlib").rc_context({**STYLE, "svg.hashsalt": title}):
        figure, axes = _figure(title, 4.6)
        for place, (name, level) in enumerate(levels):
            axes.axhline(level, color="#888888", linestyle="--", linewidth=1)
            side = "top" if place % 2 else "bottom"  # levels that lie close together keep their names apart
            axes.annotate(name, (0.99, level), xycoords=("axes fraction", "data"), ha="right", va=side, fontsize=8)
        every = [point for points in series.values() for point in points]
        sign = -1 if lower_is_better else 1
        front = sorted((every[i].x, every[i].y) for i in pareto_front([(-p.x, sign * p.y) for p in every]))
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color="#bbbbbb", linewidth=6, alpha=0.5, solid_capstyle="round")
        for name, points in series.items():
            place = order.index(name)
            ordered = sorted(points, key=lambda point: point.x)
            axes.errorbar(
                [point.x for point in ordered],
                [point.y for point in ordered],
                xerr=_reach([(point.x, *point.x_range) for point in ordered]),
                yerr=_reach([(point.y, *point.y_range) for point in ordered]),
                label=name,
                color=COLOURS[place % len(COLOURS)],
                marker=SHAPES[place // len(COLOURS) % len(SHAPES)],
                markersize=5,
                linewidth=1.3,
                elinewidth=0.8,
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        return _svg(figure)


def forest(title: str, x_label: str, rows: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """One group of rows per question, one dot with its interval per method, and a line at zero.

    Args:
        rows: (low, value, high) by question and method; every question has the same methods.
    """
    labels = list(next(iter(rows.values())))
    with require("matplotlib").rc_context({**STYLE, "svg.hashsalt": title}):
        figure, axes = _figure(title, 1.8 + 0.14 * len(rows) * (len(labels) + 1))
        for place, label in enumerate(labels):
            found = [(value, low, high) for low, value, high in (row[label] for row in rows.values())]
            heights = [question * (len(labels) + 1) + place for question in range(len(rows))]
            axes.errorbar(
                [value for value, _, _ in found],
                heights,
                xerr=_reach(found),
                label=label,
                color=COLOURS[place % len(COLOURS)],
                fmt="o",
                markersize=4,
                elinewidth=1.2,
            )
        axes.axvline(0, color="#888888", linestyle="--", linewidth=1)
        middle = (len(labels) - 1) / 2
        axes.set_yticks([question * (len(labels) + 1) + middle for question in range(len(rows))], list(rows))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        return _svg(figure)


def _reach(values: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float]]:
    """How far intervals (value, low, high) reach down and up."""
    return [max(0.0, value - low) for value, low, _ in values], [max(0.0, high - value) for value, _, high in values]


def _figure(title: str, height: float) -> tuple[Any, Any]:
    # The class instead of pyplot: no window system, and nothing that threads share.
    figure = require("matplotlib.figure").Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontweight="bold", fontsize=10)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an SVG element, its legend below."""
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :].rstrip()
