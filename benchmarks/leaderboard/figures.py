"""From the folders of a run to its figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.joined import join
from benchmarks.leaderboard.entrants import NEAR, named_settings
from benchmarks.leaderboard.judged import judged
from benchmarks.study.__main__ import AGAIN
from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RUN, RunFolder
from stepvar.evaluation.statistics import Spread, bootstrap, paired
from stepvar.evaluation.summary import Row, Rows, accuracy, compared, speedups
from stepvar.utils.files import write_text

Entry = Mapping[str, Any]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EQUAL = 99.0
"""The PSNR of images that are equal."""

MEASURES = ("psnr", "ssim", "high_frequency", "gmsd", "haarpsi", "spectrum", "gram", "cvvdp")
"""Given where the manifest has them of every image."""

BY_CATEGORY = ("psnr", "spectrum")
"""Measures that are given of each category, too."""

CATEGORIES, IMAGES = (2, 6), 8
"""How many categories are told apart, and how many images each needs."""


def read_folders(paths: Sequence[Path]) -> list[RunFolder]:
    """Each folder, or the shards in it.

    Raises:
        UsageError: where there is neither.
    """
    found = []
    for path in paths:
        shards = [] if (path / RUN).exists() else [one.parent for one in sorted(path.glob(f"*-of-*/{RUN}"))]
        found += [RunFolder.read(one) for one in shards or [path]]
    return found


def write_figures(folders: Sequence[RunFolder], name: str | None = None, results: Path = RESULTS) -> Path:
    """Writes ``leaderboard-NAME.json``; the name is the model's, as the run calls it, where none is given."""
    found = figures(folders)
    path = results / f"leaderboard-{name or found['settings']['model']}.json"
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


def figures(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """One entry per method that has run, who leads at each budget, and how far each is above random selection.

    Raises:
        UsageError: if the folders do not belong together, or hold no image yet.
    """
    run = join(folders, "leaderboard")
    rows, budgets = run.rows, run.settings["budgets"]
    if DENSE.label not in rows:
        raise UsageError(f"{folders[0].path}: no dense image yet, to which others could be compared")
    dense, timing = rows[DENSE.label], alike(run.timing)
    categories = categories_of(dense)
    known = {entry["label"]: entry for folder in folders for entry in folder.settings["entrants"]}
    chosen = any("measured" in entry for entry in known.values())
    entries = [
        _entry(known[label], own, dense, list(categories)) | _measured(known[label], timing, chosen)
        for label, own in rows.items()
        if label in known
    ]
    entries = [entry for entry in entries if entry.get("psnr", {"mean": 0.0})["mean"] < EQUAL]  # others change nothing
    answers = [right for right in map(accuracy, dense.values()) if right is not None]
    again = [1 / ratio for ratio in speedups(timing, AGAIN.label)]
    return {
        "info": run.info,
        "settings": run.settings,
        "images": len(dense),
        "categories": categories,
        "dense_accuracy": round(float(np.mean(answers)), 5) if answers else None,
        "timed": "chosen" if chosen else "run",
        "dense_again": _rounded(Spread.of(again).to_dict()) if again else None,
        "entries": entries,
        "judged": _rounded(judged(rows, list(known))),
        "leaders": {str(budget): leader_of(entries, rows, budget) for budget in budgets},
        "over_random": {str(budget): over_random(entries, rows, budget) for budget in budgets},
    }


def alike(timing: Sequence[Row]) -> list[Row]:
    """The timed batches that ran as dense did in the end: replays and what was not captured cannot be compared."""
    ways = [(row, str(row.get("engine", "")).partition(":")[0]) for row in timing]
    dense = [way for row, way in ways if row["method"] == DENSE.label]
    return [row for row, way in ways if way == dense[-1]] if dense else []


def categories_of(dense: Rows) -> dict[str, int]:
    """Categories with enough images, and how many each has; none where there are too few of them or too many."""
    counts = Counter(row.get("category", "") for row in dense.values())
    found = {name: count for name, count in sorted(counts.items()) if name and count >= IMAGES}
    least, most = CATEGORIES
    return found if least <= len(found) <= most else {}


def _entry(entry: Entry, rows: Rows, dense: Rows, categories: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {**entry, "images": len(rows), **_means(rows, MEASURES)}
    found["accuracy"] = compared(rows, dense, accuracy)
    parts = {name: {key: row for key, row in rows.items() if row.get("category") == name} for name in categories}
    if parts:
        found["by_category"] = {name: _means(part, BY_CATEGORY) for name, part in parts.items() if part}
    return _rounded(found)


def _means(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """The mean of each measure that all rows have, with its interval."""
    prompts = [prompt for prompt, _ in rows]
    found = {}
    for name in names:
        values = [float(row[name]) for row in rows.values() if name in row]
        if len(values) == len(rows):
            found[name] = bootstrap(values, prompts).to_dict()
    return found


def _measured(entry: Entry, timing: Sequence[Row], chosen: bool) -> dict[str, Any]:
    """The time of an image by dense over the method's own.

    Args:
        chosen: times were measured when the methods were chosen, of those that have one; else batch by batch here.
    """
    if chosen:
        return {"measured": _rounded(entry["measured"])} if "measured" in entry else {}
    ratios = speedups(timing, entry["label"], (DENSE.label, AGAIN.label))
    return {"measured": _rounded(Spread.of(ratios).to_dict())} if ratios else {}


def at_budget(entry: Entry, budget: float) -> bool:
    """Whether a method belongs into the table of a budget: it was set to it, or costs as little by itself."""
    if entry["label"].startswith("floor"):
        return False
    return entry["budget"] == budget or (entry["budget"] is None and abs(entry["speedup"] / budget - 1) <= 2 * NEAR)


def leader_of(entries: Sequence[Entry], rows: Mapping[str, Rows], budget: float) -> dict[str, Any]:
    """Who has the highest PSNR at a budget, and by how much it leads each of the others, pair by pair."""
    taking_part = [entry for entry in entries if at_budget(entry, budget) and "psnr" in entry]
    if not taking_part:
        return {}
    first = max(taking_part, key=lambda entry: entry["psnr"]["mean"])["label"]
    leads = {entry["label"]: _difference(rows[first], rows[entry["label"]]) for entry in taking_part}
    return {"label": first, "leads": leads}


def over_random(entries: Sequence[Entry], rows: Mapping[str, Rows], budget: float) -> dict[str, Any]:
    """How much higher the PSNR of each method of a budget is than that of random selection, pair by pair."""
    random = f"random@{budget:g}"
    labels = [entry["label"] for entry in entries if at_budget(entry, budget) and "psnr" in entry]
    if random not in labels:
        return {}
    return {label: _difference(rows[label], rows[random]) for label in labels if label != random}


def _difference(one: Rows, other: Rows) -> dict[str, Any]:
    """Of PSNR, on the images that both have."""
    shared = [image for image in one if image in other]
    own, reference = ([float(rows[image]["psnr"]) for image in shared] for rows in (one, other))
    found: dict[str, Any] = _rounded(paired(own, reference, [prompt for prompt, _ in shared]).to_dict())
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return value


NOT_ADVISED = ("random", "skip-last", "sparvar")
"""Baselines, and sparse attention, whose saved operations have not saved time so far."""


def ranking(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By budget, what ``--method auto`` may choose, nearest to dense first.

    What is certainly less accurate than dense is left out, unless all are.
    """
    known, found = named_settings(), dict[str, list[dict[str, Any]]]()
    for budget in result["settings"]["budgets"]:
        rows = [entry for entry in result["entries"] if at_budget(entry, budget) and "psnr" in entry]
        rows = [entry for entry in rows if not _less_accurate(entry)] or rows
        for entry in sorted(rows, key=lambda entry: -entry["psnr"]["mean"]):
            name, settings = known.get(entry["label"].partition("@")[0], ("", {}))
            if name and not name.startswith(NOT_ADVISED):
                row = {"method": name, "settings": settings, "psnr": round(entry["psnr"]["mean"], 3)}
                found.setdefault(f"{budget:g}", []).append(row)
    return found


def _less_accurate(entry: Entry) -> bool:
    """Whether the interval of the difference in accuracy from dense is below 0."""
    return bool(entry["accuracy"]) and entry["accuracy"]["against_dense"]["high"] < 0
