"""InfinityStar at its real size with random weights: time per pass, memory, and what pruning saves.

``python -m benchmarks.infinity_star --variant 480p --seconds 5 --device cuda --out star.json``

Weights do not change what is computed, so they are random and need no download. Each method draws the same video once,
behind a still image that warms the device up; ``--tiny`` runs the whole schedule on a transformer of two narrow blocks.
Beside the generations, the search for the nearest kept token is timed on the largest grid.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import random_model
from stepvar.checkpoints.loading import LoadedModel
from stepvar.core.report import Report
from stepvar.cost.memory import estimate_memory
from stepvar.methods import Method, StepVAR, make_method
from stepvar.methods.propagation import nearest_kept
from stepvar.models.infinity_star import InfinityStarConfig
from stepvar.models.infinity_star.checkpoint import VARIANTS
from stepvar.models.infinity_star.tokenizer import VideoTokenizerConfig
from stepvar.models.registry import FAMILIES
from stepvar.pipeline import Pipeline

TEXT = 128
"""Tokens of the prompt."""


def tiny(config: InfinityStarConfig) -> InfinityStarConfig:
    """The same schedule on a model that a CPU runs."""
    tokenizer = VideoTokenizerConfig((4, 8, 8, 8), blocks=1, decoder_blocks=1, middle_blocks=1, latent_channels=4)
    return replace(config, depth=2, width=32, heads=4, kv_heads=1, block_chunks=2, tokenizer=tokenizer, ffn_ratio=4.0)


def draw(pipe: Pipeline, method: Method, seconds: float) -> Report:
    text = torch.randn(1, TEXT, pipe.model.config.text_channels, generator=torch.Generator().manual_seed(0))
    out = pipe(prompt_embeds=text, seconds=seconds, method=method, seed=0, output_type="pt", progress=True)
    return out.report


def search_seconds(pipe: Pipeline, seconds: float, keep: float, runs: int = 5) -> float:
    """Median time of finding the nearest kept token on the last grid, for one sample."""
    grid, device = pipe.schedule(seconds=seconds).grids[-1], pipe.device
    kept = torch.randperm(grid.size, device=device)[: int(keep * grid.size)].sort().values.unsqueeze(0)
    times = []
    for _ in range(runs + 1):
        synchronise(device)
        start = time.perf_counter()
        nearest_kept(kept, grid)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[runs // 2]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(pipe: Pipeline, methods: list[Method], seconds: float) -> dict[str, Any]:
    """What each method took, and what was estimated."""
    draw(pipe, methods[0], 0)
    plan, model = pipe.plan(seconds=seconds), pipe.model
    found: dict[str, Any] = {"schedule": plan.schedule.name, "device": _device_name(pipe.device), "methods": []}
    dense: Report | None = None
    for method in methods:
        report = draw(pipe, method, seconds)
        dense = dense or report
        estimate = estimate_memory(model.config, plan, method, 1, model.precision, model.tile, TEXT)
        found["methods"].append(
            {
                "method": repr(method),
                "speedup": dense.seconds / report.seconds,
                "scales_speedup": dense.scale_seconds / report.scale_seconds,
                "estimated_memory": estimate.total,
                "report": report.to_dict(),
            }
        )
        print(
            f"{method!s}: {report.seconds:.1f} s, scales {report.scale_seconds:.1f} s, "
            f"decode {report.stages['decode']:.1f} s, {report.flops / 1e15:.2f} PFLOP, peak "
            f"{report.peak_memory / 2**30:.1f} GiB (estimated {estimate.total / 2**30:.1f}), "
            f"{dense.seconds / report.seconds:.2f} times dense",
            flush=True,
        )
    assert dense is not None  # there is a method
    found["search_seconds"] = search_seconds(pipe, seconds, 0.5)
    found["search_share"] = found["search_seconds"] / dense.scales[-1].seconds
    print(f"nearest kept token: {1e3 * found['search_seconds']:.2f} ms, {found['search_share']:.2e} of the last pass")
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", default="480p", choices=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5])
    parser.add_argument("--also", nargs="*", default=[], help="other methods by name")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    variant = VARIANTS[chosen.variant]
    config = tiny(variant.config) if chosen.tiny else variant.config
    device = torch.device(chosen.device)
    model = random_model(FAMILIES["infinity_star"], config, device, getattr(torch, chosen.dtype))
    name = f"InfinityStar {chosen.variant}, random weights{', tiny' if chosen.tiny else ''}"
    pipe = Pipeline(LoadedModel(name, "infinity_star", model, None, dict(variant.defaults)), None)
    methods = [make_method("dense"), *(StepVAR(keep=keep) for keep in chosen.keep), *map(make_method, chosen.also)]
    found = measure(pipe, methods, chosen.seconds)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
