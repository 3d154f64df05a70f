"""Whether SparVAR's attention is faster than dense attention: ``python -m benchmarks.attention --device cuda``.

The self-attention of one layer of each kind runs at the last three scales of Infinity at 1024x1024 in bfloat16, on
random queries, keys and values of one image with guidance, beside PyTorch's dense attention; the sums are those of all
layers. What every layer computes beside (products, norms) is left out: see ``python -m benchmarks.engine``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command_line
from benchmarks.kernel_cases import HALF, Inputs
from benchmarks.kernels import milliseconds
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import AttentionInputs, ModelInfo, Projection, SublayerRef
from stepvar.methods import SparVAR, make_method
from stepvar.methods.sparvar import SparVARState
from stepvar.models.infinity.config import CONFIGS
from stepvar.models.infinity.schedules import schedule_for
from stepvar.utils.files import write_text

ROWS = 2


def dense(inputs: AttentionInputs) -> Tensor:
    return F.scaled_dot_product_attention(inputs.queries, inputs.keys, inputs.values, scale=1.0)


def inputs_of(given: Inputs, plan: Plan, step: Step, heads: int, head_dim: int) -> AttentionInputs:
    """Queries, and keys of unit length, as Infinity's attention has them."""
    keys = plan.attended(step)[0]
    q, k, v = (given.random(ROWS, heads, count, head_dim) for count in (step.grid.size, keys, keys))
    q, k, v = (5 * F.normalize(q, dim=-1)).to(HALF), F.normalize(k, dim=-1).to(HALF), v.to(HALF)
    return AttentionInputs(q, k, v, Projection(q))


def sparse(
    method: SparVAR, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: SparVARState
) -> Callable[[], Tensor]:
    """A layer's attention, each time from the keys that the scale before has left."""
    before = dict(state.chosen)

    def attend() -> Tensor:
        state.chosen = dict(before)
        return method.run_attention(dense, inputs, ref, step, state)

    return attend


@torch.inference_mode()
def table(variant: str, device: torch.device, small: bool) -> list[str]:
    """One row for each scale and kind of layer, and the sums over all layers, in Markdown."""
    config = CONFIGS[variant]
    schedule = schedule_for("0.06M" if small else "1M", 1.0)
    method = make_method("sparvar:infinity")
    assert isinstance(method, SparVAR)
    settings = Settings(schedule, (3.0,) * len(schedule), (1.0,) * len(schedule))
    plan = method.plan(settings, ModelInfo(config.depth), samples=1)
    state, given = method.start(plan), Inputs(device, small)
    heads = 2 if small else config.heads
    counts = {"CS4A": method.cs4a_layers or 0, "CSLA": config.depth - (method.cs4a_layers or 0)}
    lines = [
        f"| Infinity-{variant.upper()}, scale | layers | keys per query | dense, ms | sparse, ms | gain |",
        "|---" * 6 + "|",
    ]
    whole = {"dense": 0.0, "sparse": 0.0}
    for step in plan.steps[-method.sparse_scales :]:
        inputs = inputs_of(given, plan, step, heads, config.head_dim)
        reference = milliseconds(lambda inputs=inputs: dense(inputs), device)  # type: ignore[misc]
        for kind, count in counts.items():
            layer = 0 if kind == "CS4A" else config.depth - 1
            attend = sparse(method, inputs, SublayerRef(layer, "self", config.depth), step, state)
            taken = milliseconds(attend, device)
            whole["dense"] += count * reference
            whole["sparse"] += count * taken
            seen = f"{step.keys_per_query[layer]} of {plan.attended(step)[layer]}"
            lines.append(
                f"| {step.grid} | {count} {kind} | {seen} | {reference:.3f} | {taken:.3f} | {reference / taken:.2f}x |"
            )
    verdict = "faster" if whole["sparse"] < whole["dense"] else "not faster"
    gain = whole["dense"] / whole["sparse"]
    lines.append(f"| all, {verdict} | {config.depth} | | {whole['dense']:.2f} | {whole['sparse']:.2f} | {gain:.2f}x |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--variants", nargs="+", choices=list(CONFIGS), default=["2b", "8b"])
    parser.add_argument("--small", action="store_true", help="few tokens and heads, for machines without a GPU")
    parser.add_argument("--out", type=Path, help="write the tables to this file")
    options = parser.parse_args(arguments)
    small = options.small or options.device.type == "cpu"
    name = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "CPU"
    lines = [f"`{command_line(__spec__)}`", "", f"{name}, PyTorch {torch.__version__}."]
    for variant in options.variants:
        lines += ["", *table(variant, options.device, small)]
    print("\n".join(lines))
    if options.out:
        write_text(options.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
