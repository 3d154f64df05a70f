"""The tables and plots of ``docs/results.md`` from the figures of the study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.study.candidates import ABLATED, BUDGETS
from stepvar.evaluation.report.charts import Point, scatter
from stepvar.evaluation.report.tables import interval, is_certain, percents, to_markdown
from stepvar.utils.files import write_text

Result = Mapping[str, Any]
Entry = Mapping[str, Any]

SETTINGS = {
    "weight": "Weight of the structure score, by normalisation",
    "iterations": "Power iterations (weight 1)",
    "span": "Blocks that see all tokens, at equal cost",
    "shape": "Around the whole stack, each block or each sub-layer; state or update",
    "restore": "Selection and restoration",
    "branches": "One selection for both guidance branches, or one each",
    "scales": "How many scales are pruned, at equal cost",
    "variants": "Settings of the variants",
}
"""Groups of variants and their titles."""

CLOSE = 0.15
"""Methods whose cost cannot be set stand in the table of a budget that they come as near to."""

SHOWN = ("stepvar", "high-pass", "random", "fastvar", "sparsevar", "coverage", "blend", "skip-last", "drop-guidance")
"""Methods in the plots; all are in the tables."""


def write_tables(result: Result, snippets: Path, images: Path) -> None:
    """Writes ``study-*.md`` and ``study-*.svg``."""
    texts = {
        "info": info(result),
        "methods": methods(result),
        "categories": categories(result),
        "contrasts": contrast_table(result, lambda row: not row["question"].startswith("nearest against")),
        "restoring": contrast_table(result, lambda row: row["question"].startswith("nearest against")),
        "settings": settings(result),
    }
    for name, text in texts.items():
        write_text(snippets / f"study-{name}.md", text + "\n")
    for name, (title, label, pick) in CHARTS.items():
        write_text(images / f"study-{name}.svg", chart(result, title, label, pick) + "\n")


def info(result: Result) -> str:
    """What was run, and what the instruments are worth."""
    known = result["info"]
    settings, again, same = known["settings"], known["dense_again_time"], known["same_method"]
    done, planned = len(known["seeds_done"]), settings["seeds"]
    missing = "" if done == planned else f" (of {planned}: the run was stopped before the others)"
    fewer = min(settings["ablation_seeds"], done)
    variants = "" if fewer == done else f" (variants of settings: {fewer} seed{'s' if fewer > 1 else ''})"
    exact = "dense generated twice gave the same images"
    if known["dense_again_psnr"] < 99:
        exact = f"dense generated a second time came out at {known['dense_again_psnr']:.1f} dB"
    renders = ", ".join(f"{name} {100 * found['mean']:.1f} %" for name, found in result["renders"].items())
    clock = f"the time of the second over that of the first was {spread(again, 2)}"
    if same["times"] > 1:
        clock += (
            f"; StepVAR's default at the budget of {ABLATED:g}, which stands in {same['times']} tables, was measured "
            f"at {same['lowest']:.2f} to {same['highest']:.2f} times the speed of dense"
        )
    return (
        f"{settings['limit'] or settings['prompts']} held-out prompts, {done} seed{'s' if done > 1 else ''}"
        f"{missing}: {known['images']} images of each method{variants}. {known['machine']}, "
        f"{settings['dtype']}, batches of {settings['batch']}, torch {known['torch']}. The dense loop takes "
        f"{known['dense_image_ms']['median']:.2f} ms per image, decoding "
        f"{known['decode_image_ms']['median']:.2f} ms.\n\n"
        f"Instruments: {exact}; {clock}. The judge reads real renders of the same scenes as: {renders}.\n\n"
        f"`{known['command'].replace('.__main__', '')}`"
    )


def spread(values: Mapping[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['p10']:.{digits}f} to {values['p90']:.{digits}f})"


def at_budget(result: Result, budget: float) -> list[Entry]:
    """Dense, the methods that were set to a budget, and those that cost about as much."""
    entries = [entry for entry in result["entries"].values() if entry["group"] == "methods"]
    own = [entry for entry in entries if entry["budget"] == budget]
    fixed = [e for e in entries if e["budget"] is None and abs(e["speedup"] / budget - 1) <= CLOSE]
    return [result["entries"]["dense/dense"], *own, *fixed]


def methods(result: Result) -> str:
    """One table per budget, then what fits none, then the noise floor."""
    parts, placed = [], set()
    for budget in BUDGETS:
        rows = at_budget(result, budget)
        placed |= {entry["label"] for entry in rows}
        parts.append(f"**Loop over scales {budget:g} times as cheap in operations**\n\n{_methods(rows)}")
    others = [e for e in result["entries"].values() if e["group"] == "methods" and e["label"] not in placed]
    if others:
        parts.append(f"**Methods of other cost**\n\n{_methods(others)}")
    floor = [entry for entry in result["entries"].values() if entry["group"] == "floor"]
    parts.append(f"**Noise floor: dense, the last 1, 2 and 3 scales sampled again**\n\n{_methods(floor)}")
    return "\n".join(parts)


def _methods(entries: Iterable[Entry]) -> str:
    head = ["method", "operations", "measured speed-up", "PSNR, dB", "worst tenth", "SSIM", "detail left", "judge-FID"]
    rows = [[*head, "prompt accuracy", "against dense"]]
    for entry in entries:
        dense = entry["group"] == "dense"
        fidelity = ["reference", "", "", ""]
        if not dense:
            fidelity = [interval(entry["psnr"], 1), f"{entry['worst_tenth']:.1f}", interval(entry["ssim"], 3),
                        percents(entry["share"])]  # fmt: skip
        rows.append([
            entry["label"],
            f"{entry['speedup']:.2f}x",
            f"{entry['measured']['median']:.2f}x" if entry["group"] == "methods" else "",
            *fidelity,
            f"{entry['judge_fid']:.3f}" if "judge_fid" in entry else "",
            f"{100 * entry['questions']['mean']:.1f} %",
            "" if dense else points(entry["questions_against_dense"]),
        ])  # fmt: skip
    return to_markdown(rows)


def categories(result: Result) -> str:
    """Share right by category for the dearest budget, with the difference from dense where it is certain."""
    budget = BUDGETS[-1]
    names = list(result["renders"])
    rows = [["method", *(f"{name} (n={result['renders'][name]['count']})" for name in names)]]
    for entry in at_budget(result, budget):
        rows.append([entry["label"], *(_category(entry["categories"][name]) for name in names)])
    rows.append(["real renders", *(f"{100 * result['renders'][name]['mean']:.1f} %" for name in names)])
    return f"**Loop over scales {budget:g} times as cheap**\n\n" + to_markdown(rows)


def _category(found: Mapping[str, Any]) -> str:
    change = found["against_dense"]
    return f"{100 * found['mean']:.1f} %" + (f" ({100 * change['mean']:+.1f})" if is_certain(change) else "")


def contrast_table(result: Result, chosen: Callable[[Mapping[str, Any]], bool]) -> str:
    """Differences of pairs at equal cost; what is certain is set in bold."""
    rows = [["question", "budget", "PSNR, dB", "SSIM", "detail left, points", "prompt accuracy, points"]]
    for row in filter(chosen, result["contrasts"]):
        entry = result["entries"][row["one"]]
        rows.append([
            row["question"],
            f"{entry['budget']:g}" if entry["budget"] else "",
            signed(row["psnr"], 2),
            signed(row["ssim"], 4),
            signed(row["share"], 1, 100),
            signed(row["questions"], 1, 100),
        ])  # fmt: skip
    return to_markdown(rows)


def settings(result: Result) -> str:
    """One table per group of variants, all at one budget; differences are paired, from what StepVAR is by default."""
    parts = []
    for group, title in SETTINGS.items():
        entries = [entry for entry in result["entries"].values() if entry["group"] == group]
        if not entries:
            continue
        head = ["variant", "tokens kept", "measured speed-up", "PSNR, dB", "against the default", "worst tenth"]
        rows = [[*head, "detail left", "right"]]
        for entry in entries:
            rows.append([
                entry["label"],
                f"{100 * entry['knob']:.0f} %",
                f"{entry['measured']['median']:.2f}x",
                interval(entry["psnr"], 1),
                signed(entry["psnr_against_default"], 2) if "psnr_against_default" in entry else "",
                f"{entry['worst_tenth']:.1f}",
                percents(entry["share"]),
                f"{100 * entry['questions']['mean']:.1f} %",
            ])  # fmt: skip
        parts.append(f"**{title}** (loop {ABLATED:g} times as cheap)\n\n{to_markdown(rows)}")
    return "\n".join(parts)


def single(result: Result) -> str:
    """One image at a time, where starting operations may cost more than the operations."""
    rows = [["method", "operations", "measured speed-up, loop", "loop, ms"]]
    for row in result["rows"]:
        rows.append([row["label"], f"{row['speedup']:.2f}x", f"{spread(row['measured'], 2)}", f"{row['ms']:.0f}"])
    known = result["info"]
    where = f"{known['machine']}, torch {known['torch']}, {known['rounds']} rounds in turn: median (p10 to p90)"
    return f"{to_markdown(rows)}\n`{known['command']}`; {where}.\n"


Pick = Callable[[Entry], tuple[float, float, float] | None]
"""The value of an entry with the ends of its interval."""


def _interval_of(name: str, factor: float = 1.0) -> Pick:
    def pick(entry: Entry) -> tuple[float, float, float] | None:
        if entry["group"] == "dense" and name != "questions":
            return None
        found = entry[name]
        return factor * found["mean"], factor * found["low"], factor * found["high"]

    return pick


def _fid(entry: Entry) -> tuple[float, float, float] | None:
    return None if "judge_fid" not in entry else (entry["judge_fid"],) * 3


CHARTS: dict[str, tuple[str, str, Pick]] = {
    "psnr": ("Fidelity to the dense image", "PSNR, dB", _interval_of("psnr")),
    "detail": ("Detail left", "high-frequency energy, % of dense", _interval_of("share", 100)),
    "questions": ("Prompt accuracy", "% of questions", _interval_of("questions", 100)),
    "fid": ("Distance to real renders (lower is better)", "judge-FID", _fid),
}


def chart(result: Result, title: str, label: str, pick: Pick) -> str:
    """Quality against measured speed-up, a line per method."""
    series: dict[str, list[Point]] = {}
    for entry in result["entries"].values():
        family = family_of(entry["label"])
        value = pick(entry)
        if entry["group"] not in ("methods", "dense") or value is None or family not in (*SHOWN, "dense"):
            continue
        fast = entry["measured"]
        series.setdefault(family, []).append(Point(fast["median"], value[0], (fast["p10"], fast["p90"]), value[1:]))
    floor = result["entries"].get("floor/floor-2")
    level = None if floor is None else pick(floor)
    levels = [] if level is None else [("dense, last 2 scales sampled again", level[0])]
    return scatter(title, label, series, [*SHOWN, "dense"], levels, lower_is_better=pick is _fid)


def family_of(label: str) -> str:
    """The line of a plot that a method lies on; variants of StepVAR in name only are left to the tables."""
    fixed = ("skip-last", "drop-guidance")
    if "unconditional" in label or label.startswith("fastvar,"):
        return ""
    return next((name for name in fixed if label.startswith(name)), label)


def points(change: Mapping[str, float]) -> str:
    return f"{100 * change['mean']:+.1f} ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"


def signed(change: Mapping[str, float], digits: int, factor: float = 1.0) -> str:
    """A difference with its interval, in bold where the interval does not hold 0."""
    mean, low, high = (f"{factor * change[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{f'**{mean}**' if is_certain(change) else mean} ({low} to {high})"
