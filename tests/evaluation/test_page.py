"""Charts and tables from known figures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from stepvar.evaluation.report.charts import COLOURS, Point, forest, scatter
from stepvar.evaluation.report.page import equal_cost, mean_share
from stepvar.evaluation.report.tables import to_markdown
from stepvar.evaluation.summary import cost, speedups

SVG = "{http://www.w3.org/2000/svg}"


def point(x: float, y: float) -> Point:
    return Point(x, y, (x - 0.1, x + 0.1), (y - 1, y + 1))


def texts(svg: str) -> list[str]:
    """What is written on a chart; an SVG that is not well-formed fails here."""
    return [(element.text or "").strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_scatter_names_everything_and_repeats() -> None:
    series = {"a & b": [point(1.0, 20.0), point(2.0, 30.0)], "c": [point(1.5, 25.0)]}
    arguments = ("T", "y axis", series, ["a & b", "c"], [("floor", 28.0)])
    svg = scatter(*arguments)
    assert {"a & b", "c", "floor", "T", "y axis"} <= set(texts(svg))
    assert svg == scatter(*arguments)
    assert COLOURS[0] in svg and COLOURS[1] in svg and COLOURS[2] not in svg


def test_a_forest_has_a_row_per_question_and_a_line_at_zero() -> None:
    rows = {
        "colours": {"a": (-4.0, -3.0, -2.0), "b": (1.0, 2.0, 3.0)},
        "position": {"a": (-1.0, 0.0, 1.0), "b": (0.5, 1, 2)},
    }
    svg = forest("T", "points", rows)
    assert {"colours", "position", "a", "b", "points"} <= set(texts(svg)) and svg.count("stroke-dasharray") >= 1


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
    assert to_markdown([["method", "a<b"], ["dense", "1 %"]]) == "| method | a<b |\n|---|---|\n| dense | 1 % |\n"
    assert to_markdown([]) == ""


def test_several_dense_runs_of_a_round_count_together() -> None:
    """Dense ran in front at 3 and behind at 5: the method at 2 is twice as fast as their mean."""

    def row(method: str, loop: float) -> dict[str, Any]:
        work = {"flops": 100, "kept": 5, "tokens": 10, "samples": 1, "memory": None}
        return {"method": method, "round": 0, "loop": loop, "decode": 0.0, "total": loop, **work}

    timing = [row("dense", 3.0), row("dense again", 5.0), row("fast", 2.0)]
    assert cost(timing, "fast", ("dense", "dense again"))["loop_speedup"]["median"] == 2.0
    assert cost(timing, "fast")["loop_speedup"]["median"] == 1.5


def test_images_generated_one_by_one_are_compared_with_a_batch_by_the_image() -> None:
    """A batch of two took 4, its images alone 1 and 2: an image takes 1.5 in place of 2."""

    def row(method: str, loop: float, samples: int, memory: int) -> dict[str, Any]:
        work = {"flops": 100 * samples, "kept": 5, "tokens": 10, "samples": samples, "memory": memory}
        return {"method": method, "round": 0, "loop": loop, "decode": 0.0, "total": loop, **work}

    timing = [row("dense", 4.0, 2, 9), row("by image", 1.0, 1, 7), row("by image", 2.0, 1, 5)]
    assert speedups(timing, "by image") == [pytest.approx(4 / 3)]
    found = cost(timing, "by image")
    assert found["loop_seconds"]["median"] == 1.5 and found["rounds"] == 1 and found["memory"] == 7
