"""The tables of an evaluation: for the terminal, in Markdown and on the page, from one list of cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.summary import FIDELITY

if TYPE_CHECKING:
    from rich.table import Table

Results = Mapping[str, Any]
Cells = list[list[str]]
"""The head, then the rows."""

DIGITS = {"psnr": 1, "ssim": 3, "gmsd": 3, "haarpsi": 3, "lpips": 3, "cvvdp": 2, "spectrum": 2, "gram": 3, "flicker": 2}
SHARES = ("high_frequency", "motion")


def overview(results: Results) -> Cells:
    """One row per method: cost, fidelity, distances between sets, scores."""
    methods = results["methods"]
    fidelity = [name for name in FIDELITY if any(name in method["fidelity"] for method in methods)]
    sets = list(dict.fromkeys(name for method in methods for name in method["sets"]))
    scores = list(dict.fromkeys(name for method in methods for name in method["scores"]))
    timed = any(method["cost"] for method in methods)
    head = ["method", *(["speed-up, loop", "end to end", "operations"] if timed else [])]
    head += [FIDELITY[name] for name in fidelity] + sets + scores + ["images"]
    rows = []
    for method in methods:
        row = [method["label"], *(_cost(method) if timed else [])]
        row += [_fidelity(method, name) for name in fidelity]
        row += [f"{method['sets'][name]:.3g}" if name in method["sets"] else "" for name in sets]
        row += [_score(method["scores"].get(name)) for name in scores]
        rows.append([*row, str(method["images"])])
    return [head, *rows]


def categories(results: Results) -> Cells:
    """One row per method, one column per category: share right, and the difference from dense where it is certain."""
    methods = [method for method in results["methods"] if method["semantics"]]
    if not methods:
        return []
    names = list(methods[0]["semantics"])
    counts = [str(methods[0]["semantics"][name]["count"]) for name in names]
    rows = [[method["label"], *(_share(method["semantics"].get(name)) for name in names)] for method in methods]
    ceiling = results["judge_on_renders"]
    if ceiling:
        rows.append(["real renders", *(f"{100 * ceiling[name]:.0f} %" if name in ceiling else "" for name in names)])
    return [["method", *(f"{name} (n={count})" for name, count in zip(names, counts, strict=True))], *rows]


def costs(results: Results) -> Cells:
    """One row per method: measured time of an image, and memory."""
    rows = []
    for method in results["methods"]:
        cost = method["cost"]
        if cost:
            times = [_times(cost[f"{name}_seconds"]) for name in ("loop", "decode", "total")]
            memory = "" if cost["memory"] is None else f"{cost['memory'] / 2**20:.0f} MiB"
            rows.append([method["label"], *times, f"{cost['flops'] / 1e9:.1f}", memory])
    head = ["method", "loop, ms", "decoding, ms", "end to end, ms", "GFLOP", "peak memory"]
    return [head, *rows] if rows else []


def _cost(method: Mapping[str, Any]) -> list[str]:
    cost = method["cost"]
    if not cost:
        return ["", "", ""]
    return [
        _ratio(cost["loop_speedup"]),
        _ratio(cost["total_speedup"]),
        f"{100 / cost['flop_speedup']:.0f} %",
    ]


def _ratio(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f}x ({values['p10']:.2f}-{values['p90']:.2f})"


def _times(values: Mapping[str, float]) -> str:
    median, p10, p90 = (1e3 * values[name] for name in ("median", "p10", "p90"))
    return f"{median:.1f} ({p10:.1f}-{p90:.1f})"


def _fidelity(method: Mapping[str, Any], name: str) -> str:
    found = method["fidelity"].get(name)
    if found is None:
        return "reference" if method["label"] == "dense" else ""
    return percents(found) if name in SHARES else interval(found, DIGITS[name])


def _score(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['mean']:.3g} ({found['low']:.3g}-{found['high']:.3g})"


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    change = found["against_dense"]
    return percents(found) + (f", {100 * change['mean']:+.0f}" if is_certain(change) else "")


def interval(found: Mapping[str, float], digits: int) -> str:
    return f"{found['mean']:.{digits}f} ({found['low']:.{digits}f}-{found['high']:.{digits}f})"


def percents(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.0f} % ({100 * found['low']:.0f}-{100 * found['high']:.0f})"


def is_certain(change: Mapping[str, float]) -> bool:
    """Whether the interval of a difference does not hold 0."""
    return change["low"] > 0 or change["high"] < 0


def notes(results: Results) -> list[str]:
    """What readers must know: how to read the numbers, and what is not there."""
    found = [
        "Intervals are 95 % bootstrap intervals over prompts; of times, the 10th and 90th percentile over rounds. "
        "A signed number behind a share is its difference from dense on the same prompts and seeds, given only where "
        "its interval does not hold 0. floor-n is dense generation with the last n scales sampled again: "
        "differences smaller than those say nothing. Detail left is high-frequency energy over that of dense. "
        "Lower is better for GMSD, LPIPS, the patch spectrum, the Gram distance and flicker. "
        "Flicker added, of videos, is the change from frame to frame where the dense video stands still, in levels of "
        "255, above what dense has there.",
    ]
    sets = {name for method in results["methods"] for name in method["sets"]}
    if "judge-FID" in sets:
        found.append(
            "judge-FID and judge-KID are taken from the features of the embedded domain's judge, against real renders "
            "of the same scenes; they are not comparable with FID and KID from Inception."
        )
    if any(name.startswith("Lite0") for name in sets):
        found.append("Lite0-KID is the kernel distance in features of EfficientNet-Lite0.")
    if "FID to dense" in sets:
        found.append("FID and KID to dense compare a method's images with the dense ones, by Inception's features.")
    return found + [f"{name}: {text}" for name, text in results["notes"].items()]


def to_markdown(cells: Cells) -> str:
    """A table; empty for no cells."""
    if not cells:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"


def markdown(results: Results) -> str:
    """All tables, with their notes."""
    tables = [to_markdown(cells) for cells in (overview(results), categories(results), costs(results))]
    return "\n".join([f"# {title(results)}\n", *filter(None, tables), *(f"{note}\n" for note in notes(results))])


def title(results: Results) -> str:
    prompts = results["prompts"]
    seeds = len(results["seeds"])
    made = f"{prompts['count']} prompts of {prompts['source']}, {seeds} seed{'s' if seeds > 1 else ''}"
    return f"{results['model']}: {made}, on {results['device']}"


def rich_table(title: str, cells: Cells) -> Table:
    """A table for a terminal."""
    from rich.table import Table

    head, *rows = cells
    table = Table(title=title)
    for index, cell in enumerate(head):
        table.add_column(cell, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
