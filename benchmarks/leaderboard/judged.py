"""What images show: each question of a judge by itself, and how far all images are from real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.leaderboard.sets import kernel_distances
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.run import RENDERS
from stepvar.evaluation.statistics import bootstrap
from stepvar.evaluation.summary import Row, Rows, accuracy, compared

QUESTIONS = 6
"""With more questions than these only the share of all that are answered right is given."""

ALL, DISTANCE = "all", "distance"
FURTHER = {"gram": "Gram distance to dense", "cvvdp": "ColorVideoVDP, JOD"}
"""Measures by networks that stand in the same table, where they were taken."""

THOUSANDTHS = 1000


def judged(rows: Mapping[str, Rows], labels: Sequence[str]) -> dict[str, Any]:
    """By label, how often each question is answered right, and the kernel distance; also of real images.

    Empty where nothing is judged, or too much is asked.
    """
    dense, real = rows[DENSE.label], rows.get(RENDERS, {})
    asked = list(dict.fromkeys(name for row in dense.values() for name in row.get("right", {})))
    if not 0 < len(asked) <= QUESTIONS:
        return {}

    def of(name: str) -> Callable[[Row], float | None]:
        return lambda row: row["right"].get(name)

    named = {label: rows[label] for label in (DENSE.label, *labels, RENDERS) if rows.get(label)}
    found: dict[str, Any] = {
        label: {name: compared(own, dense, of(name)) for name in asked} | {ALL: compared(own, dense, accuracy)}
        for label, own in named.items()
    }
    for label, own in named.items():
        for name in FURTHER:
            if values := [float(row[name]) for row in own.values() if name in row]:
                found[label][name] = bootstrap(values, [prompt for prompt, _ in own]).to_dict()
    if real and all("features" in row for own in named.values() for row in own.values()):
        made = {label: own for label, own in named.items() if label != RENDERS}
        for label, distance in kernel_distances(made, real, DENSE.label).items():
            found[label][DISTANCE] = distance
    return found


def markdown(found: Mapping[str, Any], labels: Sequence[str]) -> str:
    """A row per label, real images and dense first; behind a figure its difference from dense, in bold if certain."""
    asked = [name for name in found[DENSE.label] if name not in (ALL, DISTANCE, *FURTHER)]
    further = [name for name in FURTHER if any(name in own for own in found.values())]
    heads = [*asked, "all questions", "distance to photographs, thousandths", *(FURTHER[name] for name in further)]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    titles = {RENDERS: "the photographs themselves", DENSE.label: DENSE.label}
    for label in (RENDERS, DENSE.label, *labels):
        own, is_dense = found.get(label, {}), label == DENSE.label
        if not own:
            continue
        cells = [_share(own[name], is_dense) for name in (*asked, ALL)]
        cells.append(_distance(own.get(DISTANCE, {}), is_dense))
        cells += [f"{own[name]['mean']:.2f}" if name in own else "" for name in further]
        name, _, budget = label.partition("@")
        title = titles.get(label) or (f"`{name}` at {budget}" if budget else f"`{name}`")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(figures: Mapping[str, Any], reference: bool) -> str:
    return _with_difference(figures, reference, 100, ".0f", " %", ".1f")


def _distance(figures: Mapping[str, Any], reference: bool) -> str:
    return _with_difference(figures, reference, THOUSANDTHS, ".1f", "", ".2f")


def _with_difference(
    figures: Mapping[str, Any], reference: bool, factor: float, digits: str, unit: str, fine: str
) -> str:
    """A mean; behind it the difference from dense, in bold where its interval excludes 0."""
    if not figures:
        return ""
    text = f"{factor * figures['mean']:{digits}}{unit}"
    if reference:
        return text
    against = figures["against_dense"]
    difference = f"{factor * against['mean']:+{fine}}"
    return f"{text} (**{difference}**)" if against["low"] > 0 or against["high"] < 0 else f"{text} ({difference})"
