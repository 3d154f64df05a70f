"""Charts and tables from known figures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from stepvar.evaluation.charts import Axis, Point, Series, forest, scatter
from stepvar.evaluation.page import equal_cost, mean_share
from stepvar.evaluation.results import cost
from stepvar.evaluation.tables import to_html, to_markdown

SVG = "{http://www.w3.org/2000/svg}"


def point(x: float, y: float) -> Point:
    return Point(x, y, (x - 0.1, x + 0.1), (y - 1, y + 1), f"<{x}>")


def test_a_scatter_is_well_formed_and_to_scale() -> None:
    series = [Series("a & b", [point(1.0, 20.0), point(2.0, 30.0)]), Series("c", [point(1.5, 25.0)])]
    root = ElementTree.fromstring(scatter("T", "x", "y", series, [(1.0, 20.0), (2.0, 30.0)], [("floor", 28.0)]))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "a & b" in texts and "floor" in texts and "T" in texts
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")][:1]
    squares = [element for element in root.iter(f"{SVG}circle")]
    assert len(squares) == 3 + 2  # the points, and the marks of the legend
    places = sorted({(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in squares if float(c.attrib["cx"]) < 560})
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y2 < y0 and circles  # higher is better, so higher up


def test_a_forest_has_a_row_per_question_and_a_line_at_zero() -> None:
    rows = [("colours", [point(-3.0, 0), point(2.0, 0)]), ("position", [point(0.0, 0), point(1.0, 0)])]
    root = ElementTree.fromstring(forest("T", "points", rows, ["a", "b"]))
    dashed = [line for line in root.iter(f"{SVG}polyline") if "stroke-dasharray" in line.attrib]
    assert len(dashed) == 1 and len(list(root.iter(f"{SVG}circle"))) == 4 + 2


@pytest.mark.parametrize("values", [(0.0, 1.0), (12.3, 12.9), (-5.0, 250.0), (3.0, 3.0)])
def test_ticks_are_round_and_inside(values: tuple[float, float]) -> None:
    axis = Axis.over(values, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7 and all(axis.low <= tick <= axis.high for tick in ticks)
    step = ticks[1] - ticks[0]
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(leading, 6) in (1, 2, 5)


def test_cost_compares_rounds_with_their_own_dense_run() -> None:
    """The machine is twice as slow in the second round: the ratio does not see it."""

    def row(method: str, number: int, loop: float) -> dict[str, Any]:
        work = {"flops": 50 if method == "fast" else 100, "kept": 5, "tokens": 10, "samples": 2, "memory": None}
        return {"method": method, "round": number, "loop": loop, "decode": 0.5, "total": loop + 0.5, **work}

    timing = [
        row("dense", 0, 4.0),
        row("fast", 0, 2.0),
        row("dense", 1, 8.0),
        row("fast", 1, 4.0),
        row("dense", 2, 9.0),
    ]
    found = cost(timing, "fast")
    assert found["rounds"] == 2 and found["loop_speedup"] == {"median": 2.0, "p10": 2.0, "p90": 2.0}
    assert found["loop_seconds"]["median"] == 1.5 and found["flop_speedup"] == 2.0 and found["memory"] is None
    assert cost(timing, "unknown") == {}


def test_methods_of_equal_cost_share_a_grid() -> None:
    def method(label: str, fast: float) -> dict[str, Any]:
        return {"label": label, "cost": {"flop_speedup": fast}}

    methods = [method("dense", 1.0), method("a", 1.3), method("b", 2.0), method("c", 1.35), method("d", 2.1)]
    assert equal_cost(methods) == [
        ("1.30 to 1.35 times fewer operations in the loop than dense", ["a", "c"]),
        ("2.00 to 2.10 times fewer operations in the loop than dense", ["b", "d"]),
    ]
    assert equal_cost([{"label": "dense", "cost": {}}, {"label": "a", "cost": {}}]) == [
        ("All methods (not timed)", ["a"])
    ]


def test_the_mean_of_categories() -> None:
    found = mean_share({"a": {"mean": 0.5, "low": 0.2, "high": 0.9}, "b": {"mean": 0.7, "low": 0.3, "high": 1.0}})
    assert found == pytest.approx({"mean": 0.6, "low": 0.6 - 0.25, "high": 0.6 + 0.25})


def test_tables() -> None:
    cells = [["method", "a<b"], ["dense", "1 %"]]
    assert to_markdown(cells) == "| method | a<b |\n|---|---|\n| dense | 1 % |\n"
    assert "<th>a&lt;b</th>" in to_html(cells) and "<tbody><tr><th>dense</th><td>1 %</td></tr>" in to_html(cells)
    assert to_markdown([]) == to_html([]) == ""
