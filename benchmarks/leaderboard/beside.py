"""Short tables of the leaderboard: photographs beside shapes, the rows that the pages speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.leaderboard.figures import Entry, at_budget
from stepvar.errors import UsageError

Row = tuple[str, tuple[str, ...]]

DROPPED = ("drop-guidance last=1", "drop-guidance last=2")
BOTH = ("stepvar+drop-guidance last=1", "stepvar+drop-guidance last=2")
RANDOM_BOTH = ("random+drop-guidance last=2",)
SKIPPED = ("skip-last count=1", "skip-last count=2")
SELECTIONS: Sequence[Row] = (
    ("StepVAR+", ("stepvar-plus",)),
    ("SparseVAR's rule", ("sparsevar",)),
    ("texture alone (`high-pass`)", ("high-pass",)),
    ("StepVAR", ("stepvar",)),
    ("random tokens", ("random",)),
)
ROWS: Mapping[str, Sequence[Row]] = {
    "operations": (
        ("guidance dropped at the last scale, the last two", DROPPED),
        ("StepVAR and guidance dropped at the last scale or two", BOTH),
        ("random tokens and guidance dropped at the last two", RANDOM_BOTH),
        ("the last scale left out", SKIPPED[:1]),
        *SELECTIONS,
        ("FastVAR, as for HART", ("fastvar:hart",)),
    ),
    "time": (
        ("guidance dropped at the last two scales", DROPPED[1:]),
        ("the last scale left out; the last two", SKIPPED),
        (
            "the last scale left out, with guidance dropped at the last two",
            ("drop-guidance+skip-last last=2 count=1",),
        ),
        ("StepVAR and guidance dropped at the last scale or two", BOTH),
        ("random tokens and guidance dropped at the last two", RANDOM_BOTH),
        ("LazyVAR", ("lazyvar",)),
        *SELECTIONS,
        ("FasterVAR", ("fastervar",)),
        ("FasterVAR, as for HART", ("fastervar:hart",)),
    ),
}
"""By what is equal: a row's title, and the labels of which the one nearest to dense stands in it."""


def markdown(models: Mapping[str, Mapping[str, Any]]) -> str:
    """PSNR to dense by row and, for each model and budget, column; in bold the highest of a column.

    At equal time the cell says in brackets how many times fewer operations that takes.

    Args:
        models: by what its images show, the figures of a model's leaderboard.

    Raises:
        UsageError: if methods are equal in operations in one, and in time in another.
    """
    kinds = {name: str(result["settings"].get("equal", "operations")) for name, result in models.items()}
    if len(set(kinds.values())) != 1:
        raise UsageError(f"{kinds}: put side by side what is equal in the same")
    equal = next(iter(kinds.values()))
    columns = [(name, result, budget) for name, result in models.items() for budget in result["settings"]["budgets"]]
    unit = "times as fast" if equal == "time" else "times fewer"
    heads = [
        f"{name}: {budget:g} {unit}" if budget == result["settings"]["budgets"][0] else f"{budget:g}"
        for name, result, budget in columns
    ]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    chosen = [[_best(result, labels, budget) for _, result, budget in columns] for _, labels in ROWS[equal]]
    highest = [max(_psnr(row[place]) for row in chosen) for place in range(len(columns))]
    for (title, _), row in zip(ROWS[equal], chosen, strict=True):
        cells = [_cell(entry, equal, top) for entry, top in zip(row, highest, strict=True)]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _best(result: Mapping[str, Any], labels: Sequence[str], budget: float) -> Entry | None:
    found = [
        entry
        for entry in result["entries"]
        if entry["label"].partition("@")[0] in labels and at_budget(entry, budget) and "psnr" in entry
    ]
    return max(found, key=_psnr) if found else None


def _psnr(entry: Entry | None) -> float:
    return -1.0 if entry is None else float(entry["psnr"]["mean"])


def _cell(entry: Entry | None, equal: str, highest: float) -> str:
    if entry is None:
        return ""
    text = f"{_psnr(entry):.1f}"
    text = f"**{text}**" if _psnr(entry) == highest else text
    return f"{text} ({entry.get('operations', entry['speedup']):.2f})" if equal == "time" else text
