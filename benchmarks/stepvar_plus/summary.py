"""From measurements to ``benchmarks/results/stepvar-plus.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepvar.evaluation.report.tables import interval, is_certain, percents, to_markdown
from stepvar.evaluation.statistics import Interval, bootstrap, paired
from stepvar.utils.files import write_text

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "stepvar-plus.json"

OWN = "stepvar-plus"
DENSE = "dense@1"

Rows = Mapping[str, Mapping[str, Any]]
"""The measurements of one candidate, by caption."""


def summarise(folder: Path, results: Path = RESULTS) -> None:
    """Writes the file, of the parts that were measured; ``judge`` has to be among them."""
    parts = {
        path.stem: json.loads(path.read_text("utf-8"))
        for path in (folder / f"{part}.json" for part in ("codes", "choose", "judge"))
        if path.exists()
    }
    judge = parts["judge"]
    found = {"info": judge["info"], "compared": comparison(judge)}
    if "choose" in parts:
        found |= {"chosen": settings(parts["choose"]), "chosen_info": parts["choose"]["info"]}
    if "codes" in parts:
        found["codes"] = codes(parts["codes"])
    write_text(results, json.dumps(_rounded(found), indent=1, allow_nan=False) + "\n")


def codes(kept: Mapping[str, Any]) -> dict[str, float]:
    """The share of codes of both pruned scales that differ from dense ones, by candidate; half of them are restored."""
    return {
        kept["entries"][key]["label"]: sum(row["flips"] for row in rows.values()) / len(rows) / 2
        for key, rows in kept["rows"].items()
    }


def comparison(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each candidate: its fidelity, its prompt accuracy, and how far StepVAR+ at the same cost is ahead of it."""
    rows: Mapping[str, Rows] = kept["rows"]
    names = shared_captions(rows)
    dense = rows[DENSE]
    found = []
    for key, entry in kept["entries"].items():
        own = rows[key]
        row = {name: entry[name] for name in ("label", "budget", "speedup")} | {"images": len(names)}
        row["accuracy"] = accuracy(own, names).to_dict()
        if key != DENSE:
            plus = rows[f"{OWN}@{entry['budget']:g}"]
            row["accuracy_against_dense"] = accuracy(own, names, dense).to_dict()
            for measure in ("psnr", "ssim", "high_frequency"):
                row[measure] = bootstrap(values(own, names, measure)).to_dict()
            for measure in ("psnr", "ssim"):
                row[f"{measure}_of_plus_ahead"] = paired(
                    values(plus, names, measure), values(own, names, measure)
                ).to_dict()
        found.append(row)
    return found


def settings(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each variant: its fidelity, and how far it is from that of StepVAR+ as it is."""
    rows: Mapping[str, Rows] = kept["rows"]
    names = shared_captions(rows)
    default = next(rows[key] for key, entry in kept["entries"].items() if entry["label"] == "as it is")
    found = []
    for key, entry in kept["entries"].items():
        row = {"label": entry["label"], "budget": entry["budget"], "speedup": entry["speedup"], "images": len(names)}
        for measure in ("psnr", "ssim", "high_frequency"):
            own, usual = values(rows[key], names, measure), values(default, names, measure)
            row |= {measure: bootstrap(own).to_dict(), f"{measure}_from_usual": paired(own, usual).to_dict()}
        found.append(row)
    return found


def shared_captions(rows: Mapping[str, Rows]) -> list[str]:
    """The captions that every candidate was measured on."""
    return sorted(set.intersection(*(set(own) for own in rows.values())))


def values(rows: Rows, names: Sequence[str], measure: str) -> list[float]:
    return [rows[name][measure] for name in names]


def accuracy(rows: Rows, names: Sequence[str], reference: Rows | None = None) -> Interval:
    """The share of questions answered right, or its difference from a reference's."""
    asked = [(name, question) for name in names for question in rows[name]["right"]]
    right = [float(rows[name]["right"][question]) for name, question in asked]
    groups = [name for name, _ in asked]
    if reference is None:
        return bootstrap(right, groups)
    return paired(right, [float(reference[name]["right"][question]) for name, question in asked], groups)


def _rounded(value: Any) -> Any:
    """Five digits are more than the figures are worth."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def page(result: Mapping[str, Any]) -> str:
    """All tables."""
    chosen = f"\n**Settings of StepVAR+, at one cost**\n\n{settings_markdown(result)}" if "chosen" in result else ""
    return markdown(result) + chosen


def markdown(result: Mapping[str, Any]) -> str:
    """One table per cost."""
    parts = []
    for budget in sorted({row["budget"] for row in result["compared"] if row["label"] != "dense"}):
        rows = sorted(
            (row for row in result["compared"] if row["budget"] == budget and row["label"] != "dense"),
            key=lambda row: -row["psnr"]["mean"],
        )
        parts.append(f"**Loop over scales {budget:g} times as cheap in operations**\n\n{_compared(rows)}")
    known = result["info"]
    dense = next(row for row in result["compared"] if row["label"] == "dense")
    parts.append(
        f"{dense['images']} held-out captions (of numbers {known['captions']}), one seed each, {known['dtype']}; "
        f"intervals of 95 % over captions, in bold where they exclude 0. Dense answers "
        f"{100 * dense['accuracy']['mean']:.1f} % of the questions right.\n"
    )
    return "\n".join(parts)


def _compared(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ["method", "operations", "PSNR to dense, dB", "StepVAR+ ahead, dB", "SSIM", "detail left"]
    table = [[*head, "prompt accuracy against dense, points"]]
    for row in entries:
        own = row["label"] == OWN
        table.append([
            row["label"],
            f"{row['speedup']:.2f}x",
            interval(row["psnr"], 1),
            "" if own else signed(row["psnr_of_plus_ahead"], 2),
            interval(row["ssim"], 3),
            percents(row["high_frequency"]),
            signed(row["accuracy_against_dense"], 1, 100),
        ])  # fmt: skip
    return to_markdown(table)


def settings_markdown(result: Mapping[str, Any]) -> str:
    """The variants of StepVAR+."""
    table = [["settings", "operations", "PSNR to dense, dB", "from as it is, dB", "SSIM", "detail left"]]
    for row in result["chosen"]:
        usual = row["label"] == "as it is"
        table.append([
            row["label"],
            f"{row['speedup']:.2f}x",
            interval(row["psnr"], 1),
            "" if usual else signed(row["psnr_from_usual"], 2),
            interval(row["ssim"], 3),
            percents(row["high_frequency"]),
        ])  # fmt: skip
    known = result["chosen_info"]
    return f"{to_markdown(table)}\n{result['chosen'][0]['images']} captions (of numbers {known['captions']}).\n"


def signed(change: Mapping[str, float], digits: int, factor: float = 1.0) -> str:
    """A difference with its interval, in bold where the interval does not hold 0."""
    mean, low, high = (f"{factor * change[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{f'**{mean}**' if is_certain(change) else mean} ({low} to {high})"
