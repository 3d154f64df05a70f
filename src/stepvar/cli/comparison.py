"""Showing a comparison with dense generation: a sheet of images, still or moving, and a table of costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepvar.utils.progress import bar

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from stepvar.cost.speedup import Fitted
    from stepvar.evaluation.comparison import Comparison
    from stepvar.media.video import Video
    from stepvar.methods import Method
    from stepvar.output import Output
    from stepvar.pipeline import Pipeline

AMPLIFICATION = 4
MAPS_SHOWN = 3
"""Maps of kept tokens on a sheet: those of the finest scales."""


def run_comparison(
    pipe: Pipeline, prompts: list[str], method: Method | Fitted, seed: int, runs: int, quiet: bool, **settings: Any
) -> Comparison:
    """Runs a comparison behind a progress bar, which moves between generations only."""
    from stepvar.evaluation.comparison import compare

    warmup = pipe.engine.warmup_runs(pipe.device)
    with bar("dense and pruned in turn", 2 * (runs + warmup), not quiet) as advance:
        return compare(pipe, prompts, method, seed, runs, warmup, on_run_end=advance, **settings)


def sheet(comparison: Comparison, prompts: list[str]) -> Image.Image:
    """One row per image: what is edited, dense, the method, their difference, and which tokens were computed."""
    from stepvar.media.sheets import contact_sheet, difference, kept_overlay

    dense, other = comparison.dense.images, comparison.other.images
    maps, sources = comparison.other.kept[-MAPS_SHOWN:], comparison.other.sources
    tiles = []
    for row, (before, after) in enumerate(zip(dense, other, strict=True)):
        tiles += [("source", sources[row])] if sources else []
        tiles += [
            ("dense", before),
            (str(comparison.method), after),
            (f"difference, {AMPLIFICATION} times amplified", difference(before, after, AMPLIFICATION)),
        ]
        for step, kept in maps:
            share = f"{100 * float(kept[row].mean()):.0f} % of {step.grid} tokens computed"
            tiles.append((share, kept_overlay(after, kept[row], square=bool(sources))))
    return contact_sheet(tiles, 3 + bool(sources) + len(maps), ["; ".join(prompts), _headline(comparison)])


def moving_sheet(comparison: Comparison, prompts: list[str]) -> Video:
    """One row per video: dense, the method and their difference, at the same moments."""
    from stepvar.media.sheets import contact_sheet, difference
    from stepvar.media.video import Video

    dense, other = comparison.dense.videos, comparison.other.videos
    titles = ("dense", str(comparison.method), f"difference, {AMPLIFICATION} times amplified")
    heading = ["; ".join(prompts), _headline(comparison)]
    pairs = [list(zip(a.images(), b.images(), strict=True)) for a, b in zip(dense, other, strict=True)]
    sheets = []
    for moment in zip(*pairs, strict=True):
        pictures = [image for a, b in moment for image in (a, b, difference(a, b, AMPLIFICATION))]
        sheets.append(contact_sheet(list(zip(len(moment) * titles, pictures, strict=True)), len(titles), heading))
    return Video.of_images(sheets, dense[0].fps)


def _headline(comparison: Comparison) -> str:
    speedup = comparison.speedup
    return (
        f"{comparison.method}: {speedup.median:.2f} times as fast as dense "
        f"({speedup.lowest:.2f} to {speedup.highest:.2f} in {comparison.runs} runs; "
        f"scales alone {comparison.scales_speedup.median:.2f}){_asked(comparison)}, "
        f"{100 * comparison.token_share:.0f} % of the tokens, "
        f"{100 * comparison.flop_share:.0f} % of the operations, PSNR {_psnr(comparison)}"
    )


def _asked(comparison: Comparison) -> str:
    """The speed-up that was asked for beside the one achieved."""
    fitted = comparison.fitted
    if fitted is None:
        return ""
    return f"; {fitted.asked:g} asked of the {fitted.scope}, {comparison.achieved.median:.2f} achieved"


def print_comparison(comparison: Comparison) -> None:
    """The table of costs, on stdout."""
    from rich.console import Console

    Console().print(table(comparison))


def table(comparison: Comparison) -> Table:
    from rich.table import Table

    report, kind = comparison.other.report, "video" if comparison.other.videos else "image"
    table = Table(
        title=f"{report.model}, {report.samples} {kind}(s), {report.device} {report.formats}",
        caption=f"{comparison.runs} runs in turn: median (lowest-highest){_asked(comparison)}\n"
        f"PSNR between the two: {_psnr(comparison)}",
    )
    table.add_column("method")
    for column in ("seconds", "tokens", "GFLOP", "speed-up", "scales only"):
        table.add_column(column, justify="right")
    table.add_row("dense", *_costs(comparison.dense, comparison.dense_seconds), "1.00", "1.00")
    speedup = comparison.speedup
    ratio = f"{speedup.median:.2f} ({speedup.lowest:.2f}-{speedup.highest:.2f})"
    scales = f"{comparison.scales_speedup.median:.2f}"
    table.add_row(str(comparison.method), *_costs(comparison.other, comparison.other_seconds), ratio, scales)
    return table


def _costs(output: Output, seconds: tuple[float, ...]) -> tuple[str, str, str]:
    from stepvar.evaluation.statistics import Spread

    time = Spread.of(seconds)
    return (
        f"{time.median:.3f} ({time.lowest:.3f}-{time.highest:.3f})",
        str(output.report.kept),
        f"{output.report.flops / 1e9:.2f}",
    )


def _psnr(comparison: Comparison) -> str:
    return "infinite (they are equal)" if comparison.psnr == float("inf") else f"{comparison.psnr:.1f} dB"
