"""What low precision costs: ``python -m benchmarks.precision --out benchmarks/results/precision.json``.

Every model runs in float32 and in each precision on the same indices or bits: those that a golden stores, or that the
embedded model drew in float32. So the errors of a scale are its own, not those of another picture.

With ``--quantization`` the embedded model alone runs with its weights in fp8 and int8, dense and with StepVAR, against
float32 and bfloat16, after its weights were moved off the steps of int8 in which they are stored:
``python -m benchmarks.precision --quantization --out benchmarks/results/quantization.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command_line
from stepvar.conformance import infinity, var
from stepvar.conformance.golden import Golden, Record, find_goldens, read_tensors
from stepvar.conformance.recording import RecordingModel
from stepvar.core.noise import Noise, SeededNoise
from stepvar.core.plan import Settings, Step
from stepvar.evaluation.metrics.fidelity import psnr
from stepvar.evaluation.scenes.grammar import caption, held_out_scenes
from stepvar.generation import generate
from stepvar.kernels.linear import QUANTIZATIONS, int8_rows
from stepvar.methods import Method, StepVAR
from stepvar.models.infinity import Infinity, TextCondition
from stepvar.models.model import VARModel
from stepvar.models.precision import Precision
from stepvar.pipeline import Pipeline
from stepvar.utils.device import full_precision
from stepvar.utils.files import write_text

BF16, FP16 = torch.bfloat16, torch.float16
PRECISIONS = {
    "bfloat16": Precision.of(BF16),
    "float16": Precision.of(FP16),
    "bfloat16, residual stream too": Precision(BF16, BF16, torch.float32, BF16),
    "bfloat16, residual stream and head too": Precision(BF16, BF16, BF16, BF16),
}
WEIGHTS = {
    "float32": Precision(),
    "bfloat16": Precision.of(BF16),
    **{f"bfloat16, {kind}": replace(Precision.of(BF16), quantization=kind) for kind in QUANTIZATIONS},
}
PAIRS = tuple((name, reference) for index, name in enumerate(WEIGHTS) for reference in list(WEIGHTS)[: min(index, 2)])
"""What is compared, and with what: everything with float32, eight bits also with bfloat16."""
METHODS: dict[str, Method[Any]] = {"dense": Method(), "StepVAR": StepVAR()}
INFINITY = ("inf_p0_sq", "inf_p0_ns_cfgmid", "inf_p1_sq")
VAR = ("var_d3",)
PROMPTS = (
    "a large red striped circle left of a small blue star on grass",
    "a large purple triangle above a large yellow circle on water",
)


@dataclass(frozen=True)
class Subject:
    """A model, what it generates, and the indices (B, N, ...) that it is to go on from; none: those that it samples."""

    name: str
    model: Callable[[], VARModel]
    condition: Any
    samples: int
    settings: Settings
    noise: Noise
    indices: tuple[Tensor, ...] = ()


class FollowingModel(RecordingModel[Any, Any]):
    """A model that notes what it computes, and goes on from given indices whatever it samples itself."""

    def __init__(self, model: Any, indices: Sequence[Tensor], record: Record) -> None:
        super().__init__(model, record)
        self.indices = indices

    def accumulate(
        self, state: Any, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        self.note(step, "indices", indices)
        super().accumulate(state, self.indices[step.index] if self.indices else indices, step, weights, mask)


@torch.inference_mode()
def run(subject: Subject, precision: Precision, method: Method[Any] | None = None) -> Record:
    """Hidden features, logits and own indices of every scale, and the image at the end."""
    record: Record = {}
    model = subject.model().set_precision(precision)
    following: Any = FollowingModel(model, subject.indices, record)
    method = method or Method()
    plan = method.plan(subject.settings, model.info, subject.samples)
    state = generate(following, subject.condition, plan, method, subject.noise)
    return record | {"image": model.decode(state)}


def from_golden(golden: Golden) -> Subject:
    """A golden's generation along the golden's indices; greedy, so no random numbers are involved."""
    noise, name = SeededNoise(()), golden.name
    if name in VAR:
        classes = var.read_classes(golden, torch.Generator())
        settings = var.read_settings(golden, var.build_model(golden))
        indices = tuple(golden.tensor(f"idx_{scale}").long() for scale in range(len(settings.schedule)))
        return Subject(name, lambda: var.build_model(golden), classes, len(classes.labels), settings, noise, indices)
    model, text = infinity.build_model(golden, Infinity), infinity.read_condition(golden)
    settings = infinity.read_settings(golden)
    stored = (golden.tensor(f"bits_{scale}") for scale in range(len(settings.schedule)))
    maps = (bits.squeeze(1).movedim(-1, 1).long() for bits in stored)
    cells = (F.pixel_unshuffle(bits, 2) if model.config.patchify else bits for bits in maps)
    indices = tuple(bits.flatten(2).transpose(1, 2) for bits in cells)
    return Subject(
        name, lambda: infinity.build_model(golden, Infinity), text, len(text.prompts), settings, noise, indices
    )


def embedded(prompts: Sequence[str] = PROMPTS, first: int = 0, pipe: Pipeline | None = None) -> Subject:
    """The embedded model, which draws with its own settings; image i has the seed ``first + i``."""
    pipe = pipe or Pipeline.from_pretrained("scenes")
    schedule, defaults = pipe.schedule(), pipe.defaults
    guidance, temperature = ((float(defaults[k]),) * len(schedule) for k in ("guidance_scale", "temperature"))
    settings = Settings(schedule, guidance, temperature)
    assert pipe.text_encoder is not None
    text, noise = TextCondition(pipe.text_encoder.encode(prompts)), SeededNoise(range(first, first + len(prompts)))
    return Subject("scenes", lambda: copy.deepcopy(pipe.model), text, len(prompts), settings, noise)


def compared(exact: Record, rounded: Record, scales: int) -> dict[str, Any]:
    """Errors of each scale; of the image in levels of 255."""
    rows = []
    for scale in range(scales):
        row: dict[str, float] = {}
        for kind in ("hidden", "logits"):
            one, other = exact[f"{kind}_{scale}"].float(), rounded[f"{kind}_{scale}"].float()
            error = other - one
            row[f"{kind}_worst"] = float(error.abs().max())
            row[f"{kind}_relative"] = float(error.square().mean().sqrt() / one.square().mean().sqrt())
        differ = exact[f"indices_{scale}"] != rounded[f"indices_{scale}"]
        rows.append(row | {"indices": differ.numel(), "differing": int(differ.sum())})
    levels = 127.5 * (rounded["image"] - exact["image"]).abs()
    return {"scales": rows, "image": picture_errors(exact["image"], rounded["image"], levels)}


def picture_errors(exact: Tensor, rounded: Tensor, levels: Tensor) -> dict[str, float]:
    ratio = psnr((rounded + 1) / 2, (exact + 1) / 2)
    return {"worst": float(levels.max()), "mean": float(levels.mean()), "psnr": float(ratio.mean())}


def measure(subject: Subject) -> list[dict[str, Any]]:
    """One row per precision, along the indices; for a subject that samples its own also free of them."""
    exact, rows, scales = run(subject, Precision()), [], len(subject.settings.schedule)
    free = not subject.indices
    sampled = tuple(exact[f"indices_{scale}"] for scale in range(scales))
    following = replace(subject, indices=subject.indices or sampled)
    for label, precision in PRECISIONS.items():
        if free and precision.blocks == FP16:
            continue  # a processor takes minutes for each picture
        row = {"subject": subject.name, "precision": label} | compared(exact, run(following, precision), scales)
        if free:
            row["free"] = compared(exact, run(subject, precision), scales)["image"]
        rows.append(row)
        print(f"{subject.name}, {label}: {row['image']['psnr']:.1f} dB", flush=True)
    return rows


def measure_quantization(images: int, batch: int) -> list[dict[str, Any]]:
    """One row per method and storage of the weights, and in it what lies between that and each of two references.

    "bits" and "logits" are along the bits of the reference, "psnr" is of images that are sampled freely.
    """
    captions = [caption(scene) for scene in held_out_scenes(images, seed=3)]
    pipe = Pipeline.from_pretrained("scenes")
    between_steps(pipe.model)
    rows = []
    for label, method in METHODS.items():
        drawn: dict[str, list[Tensor]] = {name: [] for name in WEIGHTS}
        along: dict[tuple[str, str], Tensor] = {}
        for start in range(0, images, batch):
            subject = embedded(captions[start : start + batch], start, pipe)
            free = {name: run(subject, precision, method) for name, precision in WEIGHTS.items()}
            for name, record in free.items():
                drawn[name].append((record["image"] + 1) / 2)
            scales = range(len(subject.settings.schedule))
            for name, reference in PAIRS:
                indices = tuple(free[reference][f"indices_{scale}"] for scale in scales)
                followed = run(replace(subject, indices=indices), WEIGHTS[name], method)
                counted = differences(free[reference], followed, scales)
                along[name, reference] = along.get((name, reference), torch.zeros(4)) + counted
            print(f"{label}: {start + subject.samples} of {images} images", flush=True)
        pictures = {name: torch.cat(parts).clamp(0, 1) for name, parts in drawn.items()}
        for name, own in pictures.items():
            row: dict[str, Any] = {"method": label, "weights": name, "images": images, "against": {}}
            for reference in [reference for own_name, reference in PAIRS if own_name == name]:
                differing, bits, error, power = along[name, reference].tolist()
                ratios = psnr(own, pictures[reference]).tolist()
                figures = {"bits": differing / bits, "logits": (error / power) ** 0.5, "psnr": median(ratios)}
                row["against"][reference] = figures | {"lowest": min(ratios)}
            rows.append(row)
    return rows


def between_steps(model: VARModel) -> None:
    """Moves each weight of the transformer by up to half a step of int8, at random, in place.

    The embedded model is stored in int8 itself: as it is, int8 would lose nothing that other models lose.
    """
    generator = torch.Generator().manual_seed(0)
    for layer in model.transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            step = int8_rows(layer.weight.data).scale
            layer.weight.data += step * (torch.rand(layer.weight.shape, generator=generator) - 0.5)


def differences(exact: Record, other: Record, scales: range) -> Tensor:
    """Bits that differ, all bits, squared error of the logits, their squares: sums over all scales, (4,) float64."""
    total = torch.zeros(4, dtype=torch.float64)
    for scale in scales:
        differ = exact[f"indices_{scale}"] != other[f"indices_{scale}"]
        logits, error = exact[f"logits_{scale}"].double(), other[f"logits_{scale}"].double()
        sums = (differ.sum(), differ.numel(), (error - logits).square().sum(), logits.square().sum())
        total += torch.tensor([float(value) for value in sums], dtype=torch.float64)
    return total


def quantization_markdown(result: dict[str, Any]) -> str:
    """One row per method and storage of the weights."""
    lines = [
        "| method | weights | logits, relative error to float32 | bits that flip against float32 | against bfloat16 |"
        " PSNR to float32, median | to bfloat16, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in filter(lambda row: row["against"], result["rows"]):
        exact, half = (row["against"].get(name) for name in list(WEIGHTS)[:2])
        flips = [f"{100 * one['bits']:.2f} %" if one else "" for one in (exact, half)]
        ratios = [f"{one['psnr']:.1f} dB" if one else "" for one in (exact, half)]
        error = f"{100 * exact['logits']:.2f} %" if exact else ""
        lines.append(f"| {' | '.join([row['method'], row['weights'], error, *flips, *ratios])} |")
    return "\n".join(lines) + f"\n\nImages in each row: {result['rows'][0]['images']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--goldens", type=Path, default=Path("tests/goldens"), help="folder of goldens")
    parser.add_argument("--quantization", action="store_true", help="weights in fp8 and int8 instead")
    parser.add_argument("--images", type=int, default=12, help="with --quantization")
    parser.add_argument("--batch", type=int, default=6, help="with --quantization")
    arguments = parser.parse_args()
    folder = arguments.goldens
    with full_precision():
        if arguments.quantization:
            rows = measure_quantization(arguments.images, arguments.batch)
        else:
            files = find_goldens([folder / f"{name}.json" for name in (*INFINITY, *VAR)])
            subjects = [*map(from_golden, map(read_tensors, files)), embedded()]
            rows = [row for subject in subjects for row in measure(subject)]
    info = {"command": command_line(__spec__), "device": "cpu", "machine": platform.machine()}
    result = {"info": info | {"torch": torch.__version__}, "rows": rows}
    print(quantization_markdown(result) if arguments.quantization else markdown(result))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def markdown(result: dict[str, Any]) -> str:
    """One row per model and precision: the worst scale's figures, and the picture's."""
    lines = [
        "| model | precision | features, worst | features, relative | logits, worst | indices that differ |"
        " image of the same codes | image sampled freely |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        scales, image = row["scales"], row["image"]
        worst = {name: max(scale[name] for scale in scales) for name in scales[0]}
        share = sum(scale["differing"] for scale in scales) / sum(scale["indices"] for scale in scales)
        free = f"{row['free']['psnr']:.1f} dB" if "free" in row else ""
        lines.append(
            f"| {row['subject']} | {row['precision']} | {worst['hidden_worst']:.2g} |"
            f" {100 * worst['hidden_relative']:.2f} % | {worst['logits_worst']:.2g} | {100 * share:.2f} % |"
            f" {image['psnr']:.1f} dB, {image['worst']:.1f} levels at worst | {free} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
