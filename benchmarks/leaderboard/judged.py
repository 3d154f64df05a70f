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


def judged(rows: Mapping[str, Rows], labels: Sequence[str]) -> dict[str, Any]:
    """By label, how often each question is answered right, and the kernel distance; also of real images.

    Empty where nothing is judged, or too much is asked. The distance is of those whose images all have features.
    """
    dense = rows[DENSE.label]
    asked = list(dict.fromkeys(name for row in dense.values() for name in row.get("right", {})))
    if not 0 < len(asked) <= QUESTIONS:
        return {}

    def of(name: str) -> Callable[[Row], float | None]:
        return lambda row: row.get("right", {}).get(name)

    named = {label: rows[label] for label in (DENSE.label, *labels, RENDERS) if rows.get(label)}
    found: dict[str, Any] = {
        label: {name: compared(own, dense, of(name)) for name in asked} | {ALL: compared(own, dense, accuracy)}
        for label, own in named.items()
    }
    for label, own in named.items():
        for name in FURTHER:
            if measured := {key: float(row[name]) for key, row in own.items() if name in row}:
                found[label][name] = bootstrap(list(measured.values()), [prompt for prompt, _ in measured]).to_dict()
    made = {label: own for label, own in named.items() if all("features" in row for row in own.values())}
    if DENSE.label in made and RENDERS in made:
        for label, distance in kernel_distances(made, made.pop(RENDERS), DENSE.label).items():
            found[label][DISTANCE] = distance
    return found


def markdown(found: Mapping[str, Any], labels: Sequence[str]) -> str:
    """A row per label, real images and dense first; behind a figure its difference from dense, in bold if certain."""
    asked = [name for name in found[DENSE.label] if name not in (ALL, DISTANCE, *FURTHER)]
    heads = {ALL: "accuracy", DISTANCE: "distance to real images, thousandths"} | FURTHER
    columns = [*asked, *(name for name in heads if any(own.get(name) for own in found.values()))]
    lines = ["| images of | " + " | ".join(heads.get(name, name) for name in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for label in (RENDERS, DENSE.label, *labels):
        if own := found.get(label):
            cells = [_cell(name, own.get(name), label == DENSE.label) for name in columns]
            lines.append(f"| {_title(label)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _title(label: str) -> str:
    if label == RENDERS:
        return "real images"
    name, _, budget = label.partition("@")
    return f"`{name}` at {budget}" if budget else f"`{name}`"


def _cell(name: str, figures: Mapping[str, Any] | None, is_dense: bool) -> str:
    if not figures:
        return ""
    if name in FURTHER:
        return f"{figures['mean']:.2f}"
    if name == DISTANCE:
        return f"{1000 * figures['mean']:.1f}{_against(figures, 1000, '.2f', is_dense)}"
    return f"{100 * figures['mean']:.0f} %{_against(figures, 100, '.1f', is_dense)}"


def _against(figures: Mapping[str, Any], factor: float, digits: str, is_dense: bool) -> str:
    """The difference from dense, in bold where its interval excludes 0."""
    against = figures["against_dense"]
    text = f"{factor * against['mean']:+{digits}}"
    certain = against["low"] > 0 or against["high"] < 0
    return "" if is_dense else f" (**{text}**)" if certain else f" ({text})"
