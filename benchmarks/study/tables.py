"""The tables and plots of ``docs/results.md`` from the figures of the study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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

STEADY = 0.1
"""How far apart the measured speed-ups of one and the same method may lie for speed-ups to be given."""

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


def clock_is_good(result: Result) -> bool:
    """Whether one and the same method, wherever it was timed, came out alike; else measured speed-ups are left out."""
    same = result["info"]["same_method"]
    return bool(same["times"] > 1 and same["highest"] <= (1 + STEADY) * same["lowest"])


def info(result: Result) -> str:
    """What was run, and what the instruments are worth."""
    known = result["info"]
    settings, variants = known["settings"], known["variant_images"]
    planned = settings["limit"] or settings["prompts"]
    prompts = f"{known['prompts_done']}" + (f" of {planned}" if known["prompts_done"] < planned else "")
    seeds = len(known["seeds_done"])
    of_variants = f" ({variants} of variants of settings)" if variants else ""
    renders = ", ".join(f"{name} {100 * found['mean']:.1f} %" for name, found in result["renders"].items())
    return (
        f"{prompts} held-out prompts, {seeds} seed{'s' if seeds > 1 else ''}: {known['images']} images of each method"
        f"{of_variants}. {known['machine']}, {settings['dtype']}, batches of {settings['batch']}, torch "
        f"{known['torch']}.\n\n"
        f"Instruments: dense generated twice gave the same images. {_clock(result)} The judge reads real renders of "
        f"the same scenes as: {renders}.\n\n"
        f"`{known['command'].replace('.__main__', '')}`"
    )


def _clock(result: Result) -> str:
    """What times are worth, and those of dense where they are worth something."""
    known = result["info"]
    same, again = known["same_method"], known["dense_again_time"]
    found = f"Dense took {spread(again, 2)} times as long the second time"
    if same["times"] > 1:
        found += (
            f", and StepVAR's default at the budget of {ABLATED:g}, measured {same['times']} times, was "
            f"{same['lowest']:.2f} to {same['highest']:.2f} times as fast as dense"
        )
    if not clock_is_good(result):
        return f"{found}: too coarse a clock, so no measured speed-ups are given."
    return (
        f"{found}. The dense loop takes {known['dense_image_ms']['median']:.2f} ms per image, decoding "
        f"{known['decode_image_ms']['median']:.2f} ms."
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
    parts, placed, timed = [], set(), clock_is_good(result)
    for budget in BUDGETS:
        rows = at_budget(result, budget)
        placed |= {entry["label"] for entry in rows}
        parts.append(f"**Loop over scales {budget:g} times as cheap in operations**\n\n{_methods(rows, timed)}")
    others = [e for e in result["entries"].values() if e["group"] == "methods" and e["label"] not in placed]
    if others:
        parts.append(f"**Methods of other cost**\n\n{_methods(others, timed)}")
    floor = [entry for entry in result["entries"].values() if entry["group"] == "floor"]
    parts.append(f"**Noise floor: dense, the last 1, 2 and 3 scales sampled again**\n\n{_methods(floor, timed)}")
    return "\n".join(parts)


def _methods(entries: Iterable[Entry], timed: bool) -> str:
    head = ["method", "operations", *(["measured speed-up"] if timed else []), "PSNR, dB", "worst tenth", "SSIM"]
    rows = [[*head, "detail left", "judge-FID", "prompt accuracy", "against dense"]]
    for entry in entries:
        dense = entry["group"] == "dense"
        fidelity = ["reference", "", "", ""]
        if not dense:
            fidelity = [interval(entry["psnr"], 1), f"{entry['worst_tenth']:.1f}", interval(entry["ssim"], 3),
                        percents(entry["share"])]  # fmt: skip
        measured = f"{entry['measured']['median']:.2f}x" if entry["group"] == "methods" else ""
        rows.append([
            entry["label"],
            f"{entry['speedup']:.2f}x",
            *([measured] if timed else []),
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
    changes = [e["categories"][name]["against_dense"] for e in at_budget(result, budget)[1:] for name in names]
    return f"**Loop over scales {budget:g} times as cheap**\n\n{to_markdown(rows)}\n{by_chance(changes)}"


def by_chance(changes: Sequence[Mapping[str, float]]) -> str:
    """How many intervals exclude 0, and how many would where nothing differs."""
    certain = sum(map(is_certain, changes))
    return f"Of {len(changes)} intervals about {len(changes) / 20:.0f} would exclude 0 by chance; {certain} do."


def _category(found: Mapping[str, Any]) -> str:
    change = found["against_dense"]
    return f"{100 * found['mean']:.1f} %" + (f" ({100 * change['mean']:+.1f})" if is_certain(change) else "")


def contrast_table(result: Result, chosen: Callable[[Mapping[str, Any]], bool]) -> str:
    """Differences of pairs at equal cost; what is certain is set in bold."""
    shown = list(filter(chosen, result["contrasts"]))
    rows = [["question", "budget", "PSNR, dB", "SSIM", "detail left, points", "prompt accuracy, points"]]
    for row in shown:
        entry = result["entries"][row["one"]]
        rows.append([
            row["question"],
            f"{entry['budget']:g}" if entry["budget"] else "",
            signed(row["psnr"], 2),
            signed(row["ssim"], 4),
            signed(row["share"], 1, 100),
            signed(row["questions"], 1, 100),
        ])  # fmt: skip
    changes = [row[name] for row in shown for name in ("psnr", "ssim", "share", "questions")]
    return f"{to_markdown(rows)}\n{by_chance(changes)}"


def settings(result: Result) -> str:
    """One table per group of variants, all at one budget; differences are paired, from what StepVAR is by default."""
    parts, timed = [], clock_is_good(result)
    for group, title in SETTINGS.items():
        entries = [entry for entry in result["entries"].values() if entry["group"] == group]
        if not entries:
            continue
        head = ["variant", "tokens kept", *(["measured speed-up"] if timed else []), "PSNR, dB", "against the default"]
        rows = [[*head, "worst tenth", "detail left", "right"]]
        for entry in entries:
            rows.append([
                entry["label"],
                f"{100 * entry['knob']:.0f} %",
                *([f"{entry['measured']['median']:.2f}x"] if timed else []),
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
    """Quality against speed-up, measured or, without a good clock, counted in operations; a line per method."""
    series: dict[str, list[Point]] = {}
    timed = clock_is_good(result)
    for entry in result["entries"].values():
        family = family_of(entry["label"])
        value = pick(entry)
        if entry["group"] not in ("methods", "dense") or value is None or family not in (*SHOWN, "dense"):
            continue
        counted = {name: entry["speedup"] for name in ("median", "p10", "p90")}
        fast = entry["measured"] if timed else counted
        series.setdefault(family, []).append(Point(fast["median"], value[0], (fast["p10"], fast["p90"]), value[1:]))
    floor = result["entries"].get("floor/floor-2")
    level = None if floor is None else pick(floor)
    levels = [] if level is None else [("dense, last 2 scales sampled again", level[0])]
    x_label = f"speed-up of the loop over scales, {'measured' if timed else 'counted in operations'}"
    return scatter(title, label, series, [*SHOWN, "dense"], levels, lower_is_better=pick is _fid, x_label=x_label)


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
