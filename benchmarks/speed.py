"""Dense against StepVAR in time: ``python -m benchmarks.speed --model scenes --rounds 5 --out runs/speed.json``.

Every round runs dense and all settings once, in turn, so that a machine whose speed drifts slows all of them; figures
are ratios within a round, with their median and range over the rounds. Released sizes have random weights (their
pictures mean nothing, their cost is real), by default without guidance; Infinity at 1024x1024. On a GPU:

    python -m benchmarks.speed --model 2b --device cuda --dtype bfloat16 --guidance 3 --decode --speedups 1.5 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.subjects import Drawing, add_options, drawing, info
from stepvar.core.plan import Step
from stepvar.core.report import Report
from stepvar.core.tokens import TokenMap
from stepvar.cost.calibration import calibrate
from stepvar.cost.device import best_seconds
from stepvar.cost.planner import fit
from stepvar.evaluation.comparison import Spread
from stepvar.methods import Method, StepVAR
from stepvar.utils.files import write_text


class NoBlocks:
    """A stack that does nothing, to see what a method does around it."""

    depth = 1

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        return tokens


def overhead(of: Drawing, method: StepVAR, step: Step) -> float:
    """Seconds that selecting, thinning and rebuilding the map of one scale take, on features of its real shape."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(step.rows, step.grid.size, of.model.config.width, generator=generator)
    tokens = TokenMap.dense(features.to(of.model.device, of.model.precision.residual), step.grid)

    return best_seconds(of.model.device, lambda: method.run_stack(NoBlocks(), tokens, step), repeats=1)


def settings(of: Drawing, arguments: argparse.Namespace) -> dict[str, Method]:
    """The methods by what the table calls them: fixed shares, and budgets."""
    found: dict[str, Method] = {}
    for last in arguments.last:
        found |= {f"keep {keep}, last {last}": StepVAR(keep=keep, last=last) for keep in arguments.keep}
    if arguments.speedups:
        scope: Any = "image" if of.decode else "scales"
        costs = calibrate(of.whole, of.plan, of.samples, scope).costs
        for asked in arguments.speedups:
            method = fit(asked, StepVAR(), costs).method
            assert isinstance(method, StepVAR)
            found[f"{asked:g}x of the {scope} asked: keep {method.keep}, last {method.last}"] = method
    return found


def measure(of: Drawing, rounds: int, methods: dict[str, Method]) -> dict[str, Any]:
    """Interleaved rounds of dense and every setting."""
    methods = {"dense": Method(), **methods}
    reports: dict[str, list[Report]] = {label: [] for label in methods}
    of.run(Method())  # warm-up
    for number in range(rounds):
        order = list(methods) if number % 2 == 0 else list(reversed(methods))
        for label in order:
            reports[label].append(of.run(methods[label]))
            print(f"round {number} {label}: {reports[label][-1].scale_seconds:.3f} s", flush=True)
    dense = reports["dense"]
    with torch.inference_mode():
        steps = {step.index: step for step in of.plan.steps(of.samples)}
        overheads = {i: overhead(of, StepVAR(), step) for i, step in steps.items() if step.grid.size >= 256}
    rows = [_row(label, reports[label], dense, overheads) for label in methods if label != "dense"]
    return {"dense": dense[0].to_dict() | {"rounds": [r.scale_seconds for r in dense]} | _costs(dense), "rows": rows}


def _costs(reports: Sequence[Report]) -> dict[str, Any]:
    """Median seconds by stage and scale, and on a GPU the peak memory."""
    stages = {name: statistics.median(r.stages[name] for r in reports) for name in reports[0].stages}
    scales = [statistics.median(r.scales[place].seconds for r in reports) for place in range(len(reports[0].scales))]
    loop = statistics.median(r.scale_seconds for r in reports)
    whole = statistics.median(r.seconds for r in reports)
    costs: dict[str, Any] = {"seconds": {"loop": loop, "whole": whole, **stages}, "scale_seconds": scales}
    on_gpu = reports[0].device.startswith("cuda")
    return costs | ({"peak": max(r.peak_memory for r in reports)} if on_gpu else {})


def _row(label: str, reports: list[Report], dense: list[Report], overheads: dict[int, float]) -> dict[str, Any]:
    pairs = list(zip(dense, reports, strict=True))
    by_index = [{scale.index: scale for scale in report.scales} for report in dense]
    scales = []
    for place, scale in enumerate(reports[0].scales):
        if scale.kept == scale.tokens:
            continue
        index, share = scale.index, scale.kept / scale.tokens
        both = zip(by_index, reports, strict=True)
        ratios = [r.scales[place].seconds / (share * d[index].seconds) for d, r in both]
        usual = statistics.median(d[index].seconds for d in by_index)
        scales.append(
            {"tokens": scale.tokens, "kept": scale.kept, "time_over_share": Spread.of(ratios).to_dict()}
            | ({"overhead": overheads[index] / usual} if index in overheads else {})
        )
    return {
        "setting": label,
        "speedup": Spread.of([d.scale_seconds / r.scale_seconds for d, r in pairs]).to_dict(),
        "whole_speedup": Spread.of([d.seconds / r.seconds for d, r in pairs]).to_dict(),
        "flop_share": reports[0].flops / dense[0].flops,
        "kept_share": reports[0].kept / dense[0].kept,
        "scales": scales,
    } | _costs(reports)


def peak_memory(arguments: argparse.Namespace, method: Method) -> int:
    """Peak bytes of one generation on a CPU, in a process of its own since a process's peak never falls."""
    keep, last = (method.keep, method.last) if isinstance(method, StepVAR) else (1, 1)
    command = [sys.executable, "-m", "benchmarks.speed", "--once", str(keep), str(last)]
    for name in ("model", "device", "dtype", "resolution", "seconds", "guidance", "samples", "tile"):
        value = getattr(arguments, name)
        command += [] if value is None else [f"--{name}", str(value)]
    command += ["--decode"] if arguments.decode else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--last", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--speedups", type=float, nargs="*", default=[], help="budgets, beside the fixed settings")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", action="store_true", help="on a CPU, also the peak memory of each setting")
    parser.add_argument("--once", nargs=2, metavar=("KEEP", "LAST"), help="one run, prints its peak memory in bytes")
    arguments = parser.parse_args()
    of = drawing(arguments)
    if arguments.once:
        keep, last = float(arguments.once[0]), int(arguments.once[1])
        print(of.run(StepVAR(keep=keep, last=last)).peak_memory)
        return
    methods = settings(of, arguments)
    result = measure(of, arguments.rounds, methods)
    if arguments.memory and of.model.device.type == "cpu":
        result["dense"]["peak"] = peak_memory(arguments, Method())
        for method, row in zip(methods.values(), result["rows"], strict=True):
            row["peak"] = peak_memory(arguments, method)
    result["info"] = {"command": command_line(__spec__)} | info(of)
    print(markdown(result))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def markdown(result: dict[str, Any]) -> str:
    """The result as tables: the settings, where the time goes, and the scales."""
    lines = [
        "| StepVAR | tokens | FLOPs | speed-up (median, range) | time / (share x dense), pruned scales |"
        " selection + propagation | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    dense = result["dense"]
    lines.append(f"| dense | 100 % | 100 % | 1 | 1 | | {_peak(dense)} |")
    for row in result["rows"]:
        fast = row["speedup"]
        scales = [scale for scale in row["scales"] if scale["tokens"] >= 1024]
        shares = ", ".join(f"{scale['time_over_share']['median']:.2f}" for scale in scales)
        costs = ", ".join(f"{100 * scale['overhead']:.1f} %" for scale in scales)
        lines.append(
            f"| {row['setting']} | {100 * row['kept_share']:.0f} % | {100 * row['flop_share']:.0f} % |"
            f" {fast['median']:.2f}x ({fast['min']:.2f}-{fast['max']:.2f}) | {shares} | {costs} | {_peak(row)} |"
        )
    if "scale_seconds" in dense:  # results of older versions have no split
        lines += ["", *_split(result), "", *_by_scale(result)]
    return "\n".join(lines)


def _peak(costs: dict[str, Any]) -> str:
    return f"{costs['peak'] / 2**20:.0f} MiB" if "peak" in costs else ""


def _split(result: dict[str, Any]) -> list[str]:
    """The loop over scales, everything around it, and both together."""
    stages = [name for name in result["dense"]["seconds"] if name not in ("loop", "whole")]
    lines = ["| ms | loop over scales | " + " | ".join(stages) + " | whole | whole speed-up |"]
    lines.append("|---" * (len(stages) + 4) + "|")
    for row in (result["dense"] | {"setting": "dense"}, *result["rows"]):
        parts = " | ".join(f"{1e3 * row['seconds'][name]:.1f}" for name in ("loop", *stages, "whole"))
        fast = f"{row['whole_speedup']['median']:.2f}x" if "whole_speedup" in row else "1"
        lines.append(f"| {row['setting']} | {parts} | {fast} |")
    return lines


def _by_scale(result: dict[str, Any]) -> list[str]:
    """Median time of every scale."""
    scales = result["dense"]["scales"]
    names = [f"{h}x{w}" if t == 1 else f"{t}x{h}x{w}" for t, h, w in (scale["grid"] for scale in scales)]
    lines = ["| ms | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in (result["dense"] | {"setting": "dense"}, *result["rows"]):
        times = " | ".join(f"{1e3 * seconds:.1f}" for seconds in row["scale_seconds"])
        lines.append(f"| {row['setting']} | {times} |")
    return lines


if __name__ == "__main__":
    main()
