"""The parts of the page that are plain HTML: its head, what goes on, and the table of costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2

from stepvar.core.report import Report
from stepvar.serving.web.offers import Offer
from stepvar.serving.web.studio import Progress, Result

Row = tuple[str, ...]


@cache
def _fragments() -> Any:
    loader = jinja2.PackageLoader("stepvar.serving.web")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("fragments.html").module


def header(offer: Offer) -> str:
    """The name of the page, and of the model."""
    return str(_fragments().header(offer))


def progress(now: Progress) -> str:
    """What goes on, with a bar."""
    return str(_fragments().progress(now))


def error(text: str) -> str:
    """Why there is no picture; a screen reader says it at once."""
    return str(_fragments().error(text))


def done(text: str, notes: Sequence[str] = ()) -> str:
    """The last word, and what the model warns of."""
    return str(_fragments().done(text, [f"{note[:1].upper()}{note[1:]}." for note in notes]))


def hint(text: str) -> str:
    """What a view shows."""
    return str(_fragments().hint(text))


def methods(offer: Offer) -> str:
    """Every method with what it does."""
    return str(_fragments().methods(offer.methods))


def summary(result: Result) -> str:
    """What was made, in a line."""
    made = (result.output.videos or result.output.images)[0]
    return f"{made.size[0]}×{made.size[1]} in {seconds(result.output.report.seconds)}, seed {result.seed}"


def ends(left: str, right: str) -> str:
    """What lies on the two sides of a comparison."""
    return str(_fragments().ends(left, right))


def costs(result: Result) -> str:
    """Time, tokens, memory and fidelity as a table, of dense generation and the method side by side."""
    report, dense = result.output.report, None if result.dense is None else result.dense.report
    if dense is None:
        return str(_fragments().costs([report.method], cost_rows(report), ""))
    footnote = "One run of each; the first of a kind is slower. “stepvar generate --compare” times several in turn."
    fidelity = "equal" if result.psnr == math.inf else f"{result.psnr:.1f} dB"
    rows = [
        (*row, *other[1:], against)
        for row, other, against in zip(cost_rows(dense), cost_rows(report), _against(dense, report), strict=True)
    ]
    return str(
        _fragments().costs(["dense", report.method, "ratio"], [*rows, ("PSNR to dense", "", fidelity, "")], footnote)
    )


def cost_rows(report: Report) -> list[Row]:
    """What a generation took: (what, how much)."""
    memory = "Peak GPU memory" if report.device.startswith("cuda") else "Peak memory of the process"
    return [
        ("Time", seconds(report.seconds)),
        ("Time of the scales", seconds(report.scale_seconds)),
        ("Tokens computed", f"{report.kept:,}"),
        (memory, f"{report.peak_memory / 2**20:,.0f} MiB"),
    ]


def _against(dense: Report, report: Report) -> list[str]:
    """For each row of costs the method's against the dense one."""
    return [
        f"{dense.seconds / report.seconds:.2f}×",
        f"{dense.scale_seconds / report.scale_seconds:.2f}×",
        f"{100 * report.kept / dense.kept:.0f} %",
        "",
    ]


def seconds(number: float) -> str:
    """A time as people read it."""
    return f"{1000 * number:.0f} ms" if number < 1 else f"{number:.2f} s"
