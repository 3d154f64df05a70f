"""Whether quantised weights are right on a device: ``python -m benchmarks.quantization --model 2b --device cuda``.

Products of fp8 and int8 layers against float64, from one row up; then the logits of a released size with random weights
along the bits of the bfloat16 model: each kind against that model, fused blocks and plain ones. Ends with an error if
something is further off than rounding explains. For times see ``benchmarks.engine --quantization``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine import inputs_of
from benchmarks.precision import FollowingModel
from benchmarks.workload import random_pipeline, release
from stepvar.conformance.golden import Record
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Step
from stepvar.core.stack import NO_HOOKS, Hooks, RunBlocks
from stepvar.generation import generate
from stepvar.kernels import ops
from stepvar.kernels.linear import LAYERS, QUANTIZATIONS, FP8Linear, rows_for
from stepvar.methods import Method
from stepvar.models.inputs import GenerationInputs
from stepvar.pipeline import Pipeline

PRODUCT_BOUND = 6e-3
"""Relative error of a product: its outcome is rounded to bfloat16, and so is a weight of int8 before it."""
FUSED_BOUND = 1.2
"""How much further from bfloat16 the logits of fused blocks may lie than those of plain ones."""
ROWS = (1, 2, 3, 16, 100, 512, 4096)
SHAPES = ((6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192))
"""Outputs and inputs of Infinity-2B's layers."""


class FusingModel(FollowingModel):
    """Goes on from given indices without a hook around the sub-layers, so that blocks run fused."""

    def blocks(self, state: Any, step: Step, hooks: Hooks = NO_HOOKS) -> RunBlocks:
        return self.model.blocks(state, step, hooks)


def relative(got: Tensor, wanted: Tensor) -> float:
    error = (got.double() - wanted.double()).square().mean().sqrt()
    return float(error / wanted.double().square().mean().sqrt())


def check_products(device: torch.device) -> Iterator[str]:
    """Each layer on the very numbers that it multiplies, in float64."""
    for outputs, inputs in SHAPES:
        plain = nn.Linear(inputs, outputs, device=device, dtype=torch.bfloat16).requires_grad_(False)
        for kind in QUANTIZATIONS:
            layer = LAYERS[kind](plain)
            weight = layer.weight.double() * layer.weight_scale.double()
            for rows in ROWS:
                x = torch.randn(1, rows, inputs, device=device, dtype=torch.bfloat16)
                seen: Any = rows_for(layer, x)
                exact = seen.values.double() * seen.scale.double() if isinstance(layer, FP8Linear) else seen.double()
                error = relative(layer(x), nn.functional.linear(exact, weight, plain.bias.double()))
                print(f"product {kind}, {rows} x {inputs} -> {outputs}: {100 * error:.3f} %", flush=True)
                if not error < PRODUCT_BOUND:
                    yield f"product {kind} {rows} x {inputs} -> {outputs}: {error:.3g}"


def logits(pipe: Pipeline, model: Any, resolution: str | None, indices: tuple[Tensor, ...], plain: bool) -> Record:
    """What every pass predicts, along given indices or along its own, and those."""
    settings = pipe.settings(resolution=resolution, guidance_scale=3.0)
    plan, given = Method().plan(settings, model.info, 1), GenerationInputs(**inputs_of(pipe, 1, 0))
    condition = pipe.inputs.prepare(given, 1).encode(settings.schedule, ()).condition
    record: Record = {}
    following: Any = FusingModel(model, indices, record)
    with torch.inference_mode(), ops.kernels("plain" if plain else "auto"):
        generate(following, condition, plan, Method(), SeededNoise((0,)))
    return record


def check_model(pipe: Pipeline, resolution: str | None) -> Iterator[str]:
    exact = logits(pipe, pipe.model, resolution, (), plain=True)
    passes = len([name for name in exact if name.startswith("logits_")])
    indices = tuple(exact[f"indices_{index}"] for index in range(passes))
    fused = logits(pipe, pipe.model, resolution, indices, plain=False)
    print("bfloat16, fused to plain, by scale:", _percents(fused, exact, passes), flush=True)
    before = _bytes(pipe.model)
    for kind in QUANTIZATIONS:
        model = copy.deepcopy(pipe.model).quantize(kind)
        own = [logits(pipe, model, resolution, indices, plain=plain) for plain in (True, False)]
        print(f"{kind}, to bfloat16, by scale:", _percents(own[1], exact, passes))
        print(f"{kind}, fused to plain, by scale:", _percents(own[1], own[0], passes))
        print(f"{kind}: weights {_bytes(model) / 2**30:.2f} GiB, bfloat16 {before / 2**30:.2f} GiB", flush=True)
        for index in range(passes):
            plain_error, error = (relative(one[f"logits_{index}"], exact[f"logits_{index}"]) for one in own)
            if not error < FUSED_BOUND * plain_error:
                yield f"{kind}, scale {index}: {error:.3g} from bfloat16 fused, {plain_error:.3g} plain"


def _percents(got: Record, wanted: Record, passes: int) -> str:
    errors = (relative(got[f"logits_{index}"], wanted[f"logits_{index}"]) for index in range(passes))
    return " ".join(f"{100 * error:.2f}" for error in errors) + " %"


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--resolution", help="name of a schedule; default: the model's own")
    arguments = parser.parse_args(given)
    (family, variant), device = release(arguments.model), torch.device(arguments.device)
    pipe = random_pipeline(family, variant.config, device, torch.bfloat16, arguments.model, **variant.defaults)
    wrong = [*check_products(device), *check_model(pipe, arguments.resolution)]
    raise SystemExit("\n".join(["wrong:", *wrong]) if wrong else 0)


if __name__ == "__main__":
    main()
