"""From the folder of a run to its figures, and from figures to tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.leaderboard.entrants import NEAR
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.statistics import bootstrap, paired
from stepvar.evaluation.summary import Row, Rows, compared, rows_by_method
from stepvar.utils.files import write_text

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EQUAL = 99.0
"""The PSNR of images that are equal."""

MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "high_frequency": "detail left"}


def write_figures(folder: RunFolder, model: str) -> Path:
    """Writes ``leaderboard-MODEL.json``."""
    path = RESULTS / f"leaderboard-{model}.json"
    write_text(path, json.dumps(figures(folder), indent=1, allow_nan=False) + "\n")
    return path


def figures(folder: RunFolder) -> dict[str, Any]:
    """One entry per method that has run, and who leads at each budget."""
    rows = rows_by_method(folder)
    dense = rows[DENSE.label]
    settings = folder.settings
    known = {entry["label"]: entry for entry in settings["entrants"]}
    found = [_entry(known[label], own, dense) for label, own in rows.items() if label in known]
    found = [entry for entry in found if entry.get("psnr", {"mean": 0.0})["mean"] < EQUAL]  # the others change nothing
    leaders = {str(budget): leader_of(found, rows, budget) for budget in settings["leaderboard"]["budgets"]}
    answers = [right for right in map(accuracy, dense.values()) if right is not None]
    return {
        "info": folder.info,
        "settings": settings["leaderboard"],
        "images": len(dense),
        "dense_accuracy": round(float(np.mean(answers)), 5) if answers else None,
        "entries": found,
        "leaders": leaders,
    }


def _entry(entry: Mapping[str, Any], rows: Rows, dense: Rows) -> dict[str, Any]:
    prompts = [prompt for prompt, _ in rows]
    found: dict[str, Any] = {**entry, "images": len(rows)}
    for name in MEASURES:
        values = [float(row[name]) for row in rows.values() if name in row]
        if len(values) == len(rows):
            found[name] = bootstrap(values, prompts).to_dict()
    found["accuracy"] = compared(rows, dense, accuracy)
    return _rounded(found)


def accuracy(row: Row) -> float | None:
    """The share of what is asked about an image that is right; None where nothing is asked."""
    right = row.get("right", {})
    return float(np.mean(list(right.values()))) if right else None


def at_budget(entry: Mapping[str, Any], budget: float) -> bool:
    """Whether a method belongs into the table of a budget: it was set to it, or costs as little by itself."""
    if entry["label"].startswith("floor"):
        return False
    return entry["budget"] == budget or (entry["budget"] is None and abs(entry["speedup"] / budget - 1) <= 2 * NEAR)


def leader_of(entries: Sequence[Mapping[str, Any]], rows: Mapping[str, Rows], budget: float) -> dict[str, Any]:
    """Who has the highest PSNR at a budget, and by how much it leads each of the others, pair by pair."""
    taking_part = [entry for entry in entries if at_budget(entry, budget) and "psnr" in entry]
    if not taking_part:
        return {}
    first = max(taking_part, key=lambda entry: entry["psnr"]["mean"])["label"]
    leads = {}
    for entry in taking_part:
        shared = [image for image in rows[first] if image in rows[entry["label"]]]
        own, other = ([float(rows[label][image]["psnr"]) for image in shared] for label in (first, entry["label"]))
        leads[entry["label"]] = _rounded(paired(own, other, [prompt for prompt, _ in shared]).to_dict())
    return {"label": first, "leads": leads}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return value


def markdown(result: Mapping[str, Any]) -> str:
    """A table per budget, the best first; then what costs less or more than all budgets."""
    parts, shown, cache = [], set(), result["settings"]["cache"]
    for budget in result["settings"]["budgets"]:
        leader = result["leaders"].get(str(budget), {})
        taking_part = [entry for entry in result["entries"] if at_budget(entry, budget) and "psnr" in entry]
        taking_part.sort(key=lambda entry: -entry["psnr"]["mean"])
        shown |= {entry["label"] for entry in taking_part}
        parts.append(f"### {budget:g} times fewer operations\n\n{_table(taking_part, leader.get('leads', {}), cache)}")
    rest = [entry for entry in result["entries"] if entry["label"] not in shown and "psnr" in entry]
    rest.sort(key=lambda entry: entry["speedup"])
    parts.append(f"### At a cost of their own\n\n{_table(rest, {}, cache)}")
    known = f"{result['images']} images of each method, {result['settings']['dtype']}."
    if result["dense_accuracy"] is not None:
        known += f" Dense answers {100 * result['dense_accuracy']:.1f} % of the questions right."
    return "\n\n".join([*parts, known]) + "\n"


def _table(entries: Sequence[Mapping[str, Any]], leads: Mapping[str, Any], dense_cache: int) -> str:
    columns = ["method", "FLOPs", "cache", "PSNR, dB", "behind the first", "SSIM", "detail left", "accuracy"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for entry in entries:
        cells = [
            f"`{entry['label'].partition('@')[0]}`",
            f"{entry['speedup']:.2f}x",
            f"{100 * entry['cache'] / dense_cache:.0f} %",
            _mean(entry, "psnr", 1),
            _behind(leads.get(entry["label"])),
            _mean(entry, "ssim", 3),
            _mean(entry, "high_frequency", 2),
            _accuracy(entry.get("accuracy")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(entry: Mapping[str, Any], name: str, digits: int) -> str:
    return f"{entry[name]['mean']:.{digits}f}" if name in entry else ""


def _behind(lead: Mapping[str, Any] | None) -> str:
    if lead is None:
        return ""
    if lead["mean"] == 0:
        return "first"
    text = f"{lead['mean']:.2f} ({lead['low']:.2f} to {lead['high']:.2f})"
    return f"**{text}**" if lead["low"] > 0 else text


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if not accuracy:
        return ""
    against = accuracy["against_dense"]
    mark = "" if against["low"] <= 0 <= against["high"] else f" ({100 * against['mean']:+.1f})"
    return f"{100 * accuracy['mean']:.1f} %{mark}"
