"""What low precision costs: ``python -m benchmarks.precision --out benchmarks/results/precision.json``.

Every model runs in float32 and in each precision on the same symbols: those that a golden stores, or that the
embedded model drew in float32. So the errors of a scale are its own, not those of another picture.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command_line
from stepvar.conformance import infinity, var
from stepvar.conformance.goldens import Golden, find_goldens, read_tensors
from stepvar.conformance.recording import Record, RecordBlocks
from stepvar.core.plan import Plan, Step
from stepvar.core.noise import Noise, SeededNoise
from stepvar.core.tokens import TokenMap
from stepvar.evaluation.metrics import psnr
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.methods.base import RunBlocks
from stepvar.models.infinity import TextCondition
from stepvar.models.model import VARModel
from stepvar.models.precision import Precision
from stepvar.pipeline import Pipeline
from stepvar.utils.determinism import full_precision
from stepvar.utils.files import write_text

BF16, FP16 = torch.bfloat16, torch.float16
PRECISIONS = {
    "bfloat16": Precision.of(BF16),
    "float16": Precision.of(FP16),
    "bfloat16, residual stream too": Precision(BF16, BF16, torch.float32, BF16),
    "bfloat16, residual stream and head too": Precision(BF16, BF16, BF16, BF16),
}
INFINITY = ("inf_p0_sq", "inf_p0_ns_cfgmid", "inf_p1_sq")
VAR = ("var_d3",)
PROMPTS = (
    "a large red striped circle left of a small blue star on grass",
    "a large purple triangle above a large yellow circle on water",
)


@dataclass(frozen=True)
class Subject:
    """A model, what it draws, and the symbols (B, N, ...) of every scale that it is led along; none: it draws."""

    name: str
    model: Callable[[], VARModel]
    condition: Any
    samples: int
    plan: Plan
    noise: Noise
    symbols: tuple[Tensor, ...] = ()


class Led:
    """A model that notes what it computes, and goes on from given symbols whatever it draws itself."""

    def __init__(self, model: Any, symbols: Sequence[Tensor], record: Record) -> None:
        self.model, self.symbols, self.record = model, symbols, record

    def start(self, condition: Any, plan: Plan, method: Method) -> Any:
        return self.model.start(condition, plan, method)

    def embed(self, state: Any, step: Step) -> TokenMap:
        return self.model.embed(state, step)

    def blocks(self, state: Any, step: Step, method: Method) -> RunBlocks:
        return self.model.blocks(state, step, method)

    def predict(self, state: Any, tokens: TokenMap, step: Step) -> Tensor:
        self.record[f"logits_{step.index}"] = logits = self.model.predict(state, tokens, step)
        return logits

    def accumulate(self, state: Any, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        self.record[f"symbols_{step.index}"] = symbols
        self.model.accumulate(state, self.symbols[step.index] if self.symbols else symbols, step, weights)

    def decode(self, state: Any) -> Tensor:
        return self.model.decode(state)


@torch.inference_mode()
def run(subject: Subject, precision: Precision) -> Record:
    """Hidden features, logits and own symbols of every scale, and the picture of the latents at the end."""
    record: Record = {}
    model = subject.model().set_precision(precision)
    led: Any = Led(model, subject.symbols, record)
    state = generate(led, subject.condition, subject.samples, subject.plan, RecordBlocks(record), subject.noise)
    return record | {"image": led.decode(state)}


def from_golden(golden: Golden) -> Subject:
    """A golden's generation along the golden's symbols; greedy, so no draws are involved."""
    noise, name = SeededNoise(()), golden.name
    if name in VAR:
        classes = var.read_classes(golden, torch.Generator())
        plan = var.read_plan(golden, var.build_model(golden))
        indices = tuple(golden.tensor(f"idx_{scale}").long() for scale in range(len(plan.schedule)))
        return Subject(name, lambda: var.build_model(golden), classes, len(classes.labels), plan, noise, indices)
    model, text = infinity.build_model(golden), infinity.read_condition(golden)
    plan = infinity.read_plan(golden, model)
    stored = (golden.tensor(f"bits_{scale}") for scale in range(len(plan.schedule)))
    maps = (bits.squeeze(1).movedim(-1, 1).long() for bits in stored)
    cells = (F.pixel_unshuffle(bits, 2) if model.config.patchify else bits for bits in maps)
    symbols = tuple(bits.flatten(2).transpose(1, 2) for bits in cells)
    return Subject(name, lambda: infinity.build_model(golden), text, len(text.prompts), plan, noise, symbols)


def embedded() -> Subject:
    """The embedded model, which draws with its own settings."""
    pipe = Pipeline.from_pretrained("scenes")
    schedule, defaults = pipe.schedule(), pipe.defaults
    guidance, temperature = ((float(defaults[k]),) * len(schedule) for k in ("guidance_scale", "temperature"))
    plan = Plan(schedule, guidance, temperature)
    assert pipe.text_encoder is not None
    text, noise = TextCondition(pipe.text_encoder.encode(PROMPTS)), SeededNoise(range(len(PROMPTS)))
    return Subject("scenes", lambda: Pipeline.from_pretrained("scenes").model, text, len(PROMPTS), plan, noise)


def compared(exact: Record, rounded: Record, scales: int) -> dict[str, Any]:
    """Errors of each scale; of the picture in levels of 255."""
    rows = []
    for scale in range(scales):
        row: dict[str, float] = {}
        for kind in ("hidden", "logits"):
            one, other = exact[f"{kind}_{scale}"].float(), rounded[f"{kind}_{scale}"].float()
            error = other - one
            row[f"{kind}_worst"] = float(error.abs().max())
            row[f"{kind}_relative"] = float(error.square().mean().sqrt() / one.square().mean().sqrt())
        differ = exact[f"symbols_{scale}"] != rounded[f"symbols_{scale}"]
        rows.append(row | {"symbols": differ.numel(), "differing": int(differ.sum())})
    levels = 127.5 * (rounded["image"] - exact["image"]).abs()
    return {"scales": rows, "image": picture_errors(exact["image"], rounded["image"], levels)}


def picture_errors(exact: Tensor, rounded: Tensor, levels: Tensor) -> dict[str, float]:
    ratio = psnr((rounded + 1) / 2, (exact + 1) / 2)
    return {"worst": float(levels.max()), "mean": float(levels.mean()), "psnr": float(ratio.mean())}


def measure(subject: Subject) -> list[dict[str, Any]]:
    """One row per precision, along the symbols; for a subject that draws also a row of its own free drawing."""
    exact, rows, scales = run(subject, Precision()), [], len(subject.plan.schedule)
    free = not subject.symbols
    drawn = tuple(exact[f"symbols_{scale}"] for scale in range(scales))
    led = Subject(**{**subject.__dict__, "symbols": subject.symbols or drawn})
    for label, precision in PRECISIONS.items():
        if free and precision.blocks == FP16:
            continue  # a processor takes minutes for each picture
        row = {"subject": subject.name, "precision": label} | compared(exact, run(led, precision), scales)
        if free:
            row["free"] = compared(exact, run(subject, precision), scales)["image"]
        rows.append(row)
        print(f"{subject.name}, {label}: {row['image']['psnr']:.1f} dB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--goldens", type=Path, default=None, help="folder; those of the tests without it")
    arguments = parser.parse_args()
    folder = arguments.goldens or default_goldens()
    goldens = [read_tensors(golden) for golden in find_goldens([folder / f"{name}.json" for name in (*INFINITY, *VAR)])]
    with full_precision():
        rows = [row for subject in (*map(from_golden, goldens), embedded()) for row in measure(subject)]
    info = {"command": command_line(__spec__), "device": "cpu", "machine": platform.machine()}
    result = {"info": info | {"torch": torch.__version__}, "rows": rows}
    print(markdown(result))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def markdown(result: dict[str, Any]) -> str:
    """One row per model and precision: the worst scale's figures, and the picture's."""
    lines = [
        "| model | precision | features, worst | features, relative | logits, worst | symbols that differ |"
        " picture of the same codes | picture drawn freely |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        scales, image = row["scales"], row["image"]
        worst = {name: max(scale[name] for scale in scales) for name in scales[0]}
        share = sum(scale["differing"] for scale in scales) / sum(scale["symbols"] for scale in scales)
        free = f"{row['free']['psnr']:.1f} dB" if "free" in row else ""
        lines.append(
            f"| {row['subject']} | {row['precision']} | {worst['hidden_worst']:.2g} |"
            f" {100 * worst['hidden_relative']:.2f} % | {worst['logits_worst']:.2g} | {100 * share:.2f} % |"
            f" {image['psnr']:.1f} dB, {image['worst']:.1f} levels at worst | {free} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
