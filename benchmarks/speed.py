"""Dense against StepVAR in time: ``python -m benchmarks.speed --model scenes --rounds 5 --out runs/speed.json``.

Every round runs dense and all settings once, in turn, so that a machine whose speed drifts slows all of them; figures
are ratios within a round, with their median and range over the rounds. ``--model 125m`` is the smallest Infinity with
weights from a rule (its pictures mean nothing, its cost is real), without guidance, at 1024x1024.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from stepvar.compare import Spread
from stepvar.files import write_text
from stepvar.generation import generate
from stepvar.methods import Method, StepVAR
from stepvar.models.conditioning import Subject
from stepvar.models.infinity import CONFIGS, Infinity, InfinityConfig, TextCondition
from stepvar.pipeline import Pipeline
from stepvar.plan import Plan, Step
from stepvar.report import Recorder, Report
from stepvar.sampling import SeededNoise
from stepvar.text import TextFeatures
from stepvar.tokens import TokenMap
from stepvar.verify.weights import rule_weight


@dataclass(frozen=True)
class Drawing:
    """A model, what it draws and how."""

    name: str
    model: Infinity
    condition: TextCondition
    plan: Plan

    decode: bool = False

    def run(self, method: Method) -> Report:
        """One generation; decoding, which no method changes, only if asked for."""
        recorder = Recorder(self.model.device)
        state = generate(self.model, self.condition, 1, self.plan, method, SeededNoise([7]), recorder)
        if self.decode:
            with recorder.stage("decode"):
                self.model.decode(state)
        return recorder.report(self.name, str(method), 1, self.model.dtype)


def random_model(config: InfinityConfig, dtype: torch.dtype) -> Infinity:
    """A model with weights by the rule, made in its own precision tensor by tensor: a large one fits only once."""
    with torch.device("meta"):
        model = Infinity(config)
    model.to(dtype=dtype)
    model.to_empty(device="cpu")
    for part in (model.transformer, model.tokenizer):
        for name, tensor in part.state_dict().items():
            tensor.copy_(rule_weight(name, tensor.shape, 0))
    return model.eval().requires_grad_(False)


def subject(name: str, device: str, dtype: torch.dtype, resolution: str | None) -> Drawing:
    """The embedded model with guidance, or a released size with weights by rule and without guidance."""
    if name in CONFIGS:
        model = random_model(CONFIGS[name], dtype).to(device)
        features = torch.randn(1, 16, 2048, generator=torch.Generator().manual_seed(0))
        condition = TextCondition(TextFeatures(features, (16,)))
        schedule, guidance, temperature = model.schedule(1.0, resolution or "1M"), 1.0, 0.5
    else:
        pipe = Pipeline.from_pretrained(name).to(device, dtype)
        caption = "a large red striped circle left of a small blue star on grass"
        condition = pipe.conditioner.request(Subject(caption), 1).condition()
        model, schedule = pipe.model, pipe.schedule(resolution=resolution)
        guidance, temperature = pipe.defaults["guidance_scale"], pipe.defaults["temperature"]
    count = len(schedule)
    return Drawing(name, model, condition, Plan(schedule, (guidance,) * count, (temperature,) * count))


def seconds(work: Callable[[], Any], runs: int = 5) -> float:
    """Median time of some work on the CPU, after one run that does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class NoBlocks:
    """Blocks that do nothing."""

    depth = 1

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        return tokens


def overhead(of: Drawing, method: StepVAR, step: Step) -> float:
    """Seconds that selecting, thinning and rebuilding the map of one scale take, on features of its real shape."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(step.rows, step.grid.size, of.model.config.width, generator=generator)
    tokens = TokenMap.dense(features.to(of.model.device, of.model.precision.residual), step.grid)

    return seconds(lambda: method.run_stack(NoBlocks(), tokens, step))


def measure(of: Drawing, rounds: int, settings: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Interleaved rounds of dense and every setting."""
    methods: dict[str, Method] = {"dense": Method()}
    methods |= {f"keep {keep}, last {last}": StepVAR(keep=keep, last=last) for keep, last in settings}
    reports: dict[str, list[Report]] = {label: [] for label in methods}
    of.run(Method())  # warm-up
    for number in range(rounds):
        for label, method in methods.items():
            reports[label].append(of.run(method))
            print(f"round {number} {label}: {reports[label][-1].scale_seconds:.2f} s", flush=True)
    dense = reports["dense"]
    steps = {step.index: step for step in of.plan.steps(1)}
    overheads = {i: overhead(of, StepVAR(), step) for i, step in steps.items() if step.grid.size >= 256}
    rows = [_row(label, reports[label], dense, steps, overheads) for label in methods if label != "dense"]
    return {"dense": dense[0].to_dict() | {"rounds": [r.scale_seconds for r in dense]}, "rows": rows}


def _row(
    label: str, reports: list[Report], dense: list[Report], steps: dict[int, Step], overheads: dict[int, float]
) -> dict[str, Any]:
    pairs = list(zip(dense, reports, strict=True))
    scales = []
    for index in steps:
        scale = reports[0].scales[index]
        if scale.kept == scale.tokens:
            continue
        share = scale.kept / scale.tokens
        ratios = [r.scales[index].seconds / (share * d.scales[index].seconds) for d, r in pairs]
        usual = statistics.median(d.scales[index].seconds for d in dense)
        scales.append(
            {"tokens": scale.tokens, "kept": scale.kept, "time_over_share": Spread.of(ratios).to_dict()}
            | ({"overhead": overheads[index] / usual} if index in overheads else {})
        )
    return {
        "setting": label,
        "speedup": Spread.of([d.scale_seconds / r.scale_seconds for d, r in pairs]).to_dict(),
        "flop_share": reports[0].flops / dense[0].flops,
        "kept_share": reports[0].kept / dense[0].kept,
        "scales": scales,
    }


def peak_memory(arguments: argparse.Namespace, keep: float, last: int) -> int:
    """Peak bytes of one generation, in a process of its own since a process's peak never falls."""
    command = [sys.executable, "-m", "benchmarks.speed", "--model", arguments.model, "--device", arguments.device]
    command += ["--dtype", arguments.dtype, "--once", str(keep), str(last)]
    command += ["--resolution", arguments.resolution] if arguments.resolution else []
    command += ["--decode"] if arguments.decode else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", help=f"scenes, a model folder, or one of {', '.join(CONFIGS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--resolution", help="name of a schedule; default 1M for released sizes, else the model's own")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--last", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decode", action="store_true", help="decode the picture, too; its time is a stage of its own")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each setting")
    parser.add_argument("--once", nargs=2, metavar=("KEEP", "LAST"), help="one run, prints its peak memory in bytes")
    arguments = parser.parse_args()
    of = subject(arguments.model, arguments.device, getattr(torch, arguments.dtype), arguments.resolution)
    of = replace(of, decode=arguments.decode)
    if arguments.once:
        keep, last = float(arguments.once[0]), int(arguments.once[1])
        print(of.run(StepVAR(keep=keep, last=last)).peak_memory)
        return
    settings = [(keep, last) for last in arguments.last for keep in arguments.keep]
    result = measure(of, arguments.rounds, settings)
    if arguments.memory:
        result["dense"]["peak"] = peak_memory(arguments, 1, 1)
        for setting, row in zip(settings, result["rows"], strict=True):
            row["peak"] = peak_memory(arguments, *setting)
    result["facts"] = {
        "command": command_line(__spec__),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "dtype": str(of.model.dtype),
    }
    print(markdown(result))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [
        "| StepVAR | tokens | FLOPs | speed-up (median, range) | time / (share x dense), pruned scales |"
        " selection + propagation | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    dense = result["dense"]
    peak = f"{dense['peak'] / 2**20:.0f} MiB" if "peak" in dense else ""
    lines.append(f"| dense | 100 % | 100 % | 1 | 1 | | {peak} |")
    for row in result["rows"]:
        fast = row["speedup"]
        scales = [scale for scale in row["scales"] if scale["tokens"] >= 1024]
        shares = ", ".join(f"{scale['time_over_share']['median']:.2f}" for scale in scales)
        costs = ", ".join(f"{100 * scale['overhead']:.1f} %" for scale in scales)
        peak = f"{row['peak'] / 2**20:.0f} MiB" if "peak" in row else ""
        lines.append(
            f"| {row['setting']} | {100 * row['kept_share']:.0f} % | {100 * row['flop_share']:.0f} % |"
            f" {fast['median']:.2f}x ({fast['min']:.2f}-{fast['max']:.2f}) | {shares} | {costs} | {peak} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
