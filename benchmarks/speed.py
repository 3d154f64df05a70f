"""Methods against dense in time: ``python -m benchmarks.speed --model scenes --rounds 5 --out runs/speed.json``.

Every round runs dense and all settings once, in changing order, so that a machine whose speed drifts slows all of them;
figures are ratios within a round, with their median and range over the rounds. Settings are shares of tokens that
StepVAR keeps, methods with their defaults, and settings found for a speed-up, which are then held to it. Released sizes
have random weights (their images mean nothing, their cost is real), by default without guidance; Infinity at 1024x1024.
Peak memory is measured on a GPU, elsewhere it is that of a dry run. On a GPU:

    python -m benchmarks.speed --model 2b --device cuda --dtype bfloat16 --guidance 3 --decode --speedups 1.5 2
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.workload import Workload, add_options, workload
from stepvar.core.report import Report, start_clock
from stepvar.core.tokens import TokenMap
from stepvar.cost.speedup import Fitted
from stepvar.errors import UsageError
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.run import interleaved
from stepvar.evaluation.statistics import Spread
from stepvar.methods import Method, StepVAR, make_method
from stepvar.utils.files import write_text

Settings = Mapping[str, Method | Fitted]


class NoBlocks:
    """A stack that does nothing, to see what a method does around it."""

    depth = 1

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return tokens

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return tokens

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        return tokens


@torch.inference_mode()
def overhead(of: Workload, method: Method, index: int, repeats: int = 3) -> float:
    """Seconds that selecting, pruning and restoring the map of one pass take, on features of its real shape."""
    model = of.pipe.model
    plan = method.plan(of.settings, model.info, of.samples)
    step = plan.step(index)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(step.rows, step.grid.size, model.config.width, generator=generator)
    tokens = TokenMap.dense(features.to(model.device, model.precision.residual), step.grid)
    found = []
    for _ in range(repeats):
        state = method.start(plan)
        stop = start_clock(model.device)
        method.run_stack(NoBlocks(), tokens, step, state)
        found.append(stop()())
    return min(found)


def settings(of: Workload, arguments: argparse.Namespace) -> tuple[dict[str, Method | Fitted], list[dict[str, Any]]]:
    """What is compared, by what the table calls it, and the speed-ups that cannot be had."""
    found: dict[str, Method | Fitted] = {}
    refused: list[dict[str, Any]] = []
    for last in arguments.last:
        found |= {f"keep {keep}, last {last}": StepVAR(keep=keep, last=last) for keep in arguments.keep}
    if not arguments.speedups:
        return found | {name: make_method(name) for name in arguments.methods}, refused
    for name in arguments.methods or ["stepvar"]:
        for asked in arguments.speedups:
            try:
                found[f"{name}, {asked:g}x of the {of.scope} asked"] = of.fit(asked, make_method(name))
            except UsageError as error:
                refused.append({"method": name, "asked": asked, "why": str(error)})
    return found, refused


def measure(of: Workload, rounds: int, compared: Settings) -> dict[str, Any]:
    """Interleaved rounds of dense and every setting."""
    methods = {"dense": Method()} | {
        label: one.method if isinstance(one, Fitted) else one for label, one in compared.items()
    }
    reports: dict[str, list[Report]] = {label: [] for label in methods}
    warmup = of.pipe.engine.warmup_runs(of.pipe.device)
    runs = interleaved(list(methods), range(rounds), lambda label, _: of.run(methods[label]), warmup)
    for number, label, report in runs:
        reports[label].append(report)
        print(f"round {number} {label}: {report.scale_seconds:.3f} s", flush=True)
    dense = reports["dense"]
    large = [scale.index for scale in dense[0].scales if scale.tokens >= 256]
    overheads = {index: overhead(of, StepVAR(), index) for index in large}
    peaks = {label: _peak_memory(of, method, reports[label]) for label, method in methods.items()}
    rows = []
    for label, one in compared.items():
        row = _row(label, reports[label], dense, overheads) | {"peak": peaks[label]}
        if isinstance(one, Fitted):
            achieved = row["whole_speedup" if of.decode else "speedup"]
            row |= one.to_dict() | {"method": label.partition(",")[0], "near_only": one.is_near_only}
            row |= {"achieved": achieved, "deviation": achieved["median"] / one.asked - 1}
        rows.append(row)
    times = {"rounds": [report.scale_seconds for report in dense], "peak": peaks["dense"]}
    return {"dense": dense[0].to_dict() | times | _costs(dense), "rows": rows, "rounds": rounds, "speedup_of": of.scope}


def _peak_memory(of: Workload, method: Method, reports: Sequence[Report]) -> int:
    """Bytes; a process's resident size never falls, so on the CPU it says nothing about one method among several."""
    if of.pipe.device.type == "cuda":
        return max(report.peak_memory for report in reports)
    return of.pipe.dry_run(method.plan(of.settings, of.pipe.model.info, of.samples), method).peak


def _costs(reports: Sequence[Report]) -> dict[str, Any]:
    """Median seconds by stage and scale."""
    stages = {name: statistics.median(r.stages[name] for r in reports) for name in reports[0].stages}
    scales = [statistics.median(r.scales[place].seconds for r in reports) for place in range(len(reports[0].scales))]
    loop = statistics.median(r.scale_seconds for r in reports)
    whole = statistics.median(r.seconds for r in reports)
    return {"seconds": {"loop": loop, "whole": whole, **stages}, "scale_seconds": scales}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--last", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--methods", nargs="*", default=[], help="further methods, by name")
    parser.add_argument("--speedups", type=float, nargs="*", default=[], help="which --methods (or StepVAR) are set to")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    of = workload(arguments)
    compared, refused = settings(of, arguments)
    result = measure(of, arguments.rounds, compared) | {"refused": refused}
    result["info"] = provenance(of.pipe.device, command_line(__spec__)) | {"dtype": arguments.dtype}
    print(markdown(result))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def markdown(result: dict[str, Any]) -> str:
    """The result as tables: the settings, where the time goes, and the scales; speed-ups asked for."""
    lines = _settings(result) if "dense" in result else []
    fitted = [row for row in result["rows"] if "asked_speedup" in row]
    return "\n".join([*lines, *(["", *_asked(result, fitted)] if fitted else [])]).strip()


def _settings(result: dict[str, Any]) -> list[str]:
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
    return lines


def _asked(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Speed-ups that were asked for beside those that came."""
    lines = ["| method | asked | expected | achieved (median, range) | off by | settings found |", "|---" * 6 + "|"]
    for row in rows:
        achieved, near = row["achieved"], " (nearest)" if row["near_only"] else ""
        lines.append(
            f"| {row['method']} | {row['asked_speedup']:g} | {row['expected_speedup']:.2f}{near} |"
            f" {achieved['median']:.2f}x ({achieved['min']:.2f}-{achieved['max']:.2f}) |"
            f" {100 * row['deviation']:+.0f} % | {settings_text(row['settings'])} |"
        )
    of_what = {"image": "whole images", "scales": "the loop over scales"}[result["speedup_of"]]
    lines.append(f"\nSpeed-up of {of_what}, {result['rounds']} rounds.")
    return lines + [f"Refused: `{one['why']}`" for one in result["refused"]]


def settings_text(found: dict[str, Any]) -> str:
    """What the speed-up decided, in short."""
    if any(isinstance(value, dict) for value in found.values()):
        return "; ".join(settings_text(own) for own in found.values() if isinstance(own, dict))
    told = {name: found[name] for name in ("keep", "last", "prune", "skip", "count") if name in found}
    return ", ".join(f"{name} {value}" for name, value in told.items())


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
