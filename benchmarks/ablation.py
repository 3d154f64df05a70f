"""StepVAR's settings on the embedded model: ``python -m benchmarks.ablation --out runs/ablation.json``.

Every variant draws the same held-out scenes from the same seeds; figures are against the dense pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command_line
from stepvar.evaluation.drawing import DENSE, Contender, Sampling, draw, noise_floor
from stepvar.evaluation.metrics import high_frequency_share, psnr
from stepvar.evaluation.scenes import accuracies, judge_pictures, load_judge
from stepvar.files import write_text
from stepvar.methods import PCA, HighPass, Method, Random, SkipLast, StepVAR
from stepvar.methods.scores import NORMALISATIONS
from stepvar.pipeline import Pipeline
from stepvar.scenes.grammar import Scene, caption, held_out_scenes
from stepvar.scenes.judge import Judge


def variants() -> Iterator[tuple[str, str, Method]]:
    """(group, label, method)."""
    base: dict[str, Any] = {"keep": 0.5, "last": 2}
    plain = partial(StepVAR, structure_weight=1.0)  # the paper's sum, wherever the weight is not what varies
    for propagated in ("state", "update"):
        for scope in ("stack", "block"):
            shape: dict[str, Any] = {"propagate": propagated, "scope": scope, **base}
            for method in (HighPass(**shape), plain(**shape), PCA(**shape), Random(**shape)):
                yield "selection", f"{method.name}, {scope}, {propagated}", method
    for normalisation in NORMALISATIONS:
        for weight in (0.25, 0.5, 1.0, 2.0):
            method = StepVAR(structure_weight=weight, normalisation=normalisation, **base)
            yield "weight", f"{normalisation}, w={weight}", method
    for iterations in (1, 2, 4, 16):
        yield "iterations", f"{iterations}", plain(power_iterations=iterations, **base)
    for before, after in ((1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (1, 1), (2, 2)):
        yield "span", f"before {before}, after {after}", plain(blocks_before=before, blocks_after=after, **base)
    for last in (2, 3, 4):
        for keep in (0.25, 0.5, 0.75):
            budget: dict[str, Any] = {"keep": keep, "last": last}
            for method in (plain(**budget), HighPass(**budget), Random(**budget)):
                yield "budget", f"{method.name}, keep {keep}, last {last}", method
    for count in (1, 2, 3):
        yield "skip", f"skip-last {count}", SkipLast(count)


def measure(pictures: Tensor, dense: Tensor, scenes: Sequence[Scene], judge: Judge) -> dict[str, float | None]:
    """Mean fidelity to the dense pictures (None where they are equal), and how much of each caption is right."""
    each = psnr(pictures, dense)
    equal = bool(each.isinf().any())
    row: dict[str, float | None] = {
        "psnr": None if equal else float(each.mean()),
        "psnr_p10": None if equal else float(each.quantile(0.1)),
        "psnr_error": None if equal else float(each.std() / len(each) ** 0.5),
        "high_frequency": float(high_frequency_share(pictures, dense).mean()),
    }
    return row | {name: share for name, (share, _) in accuracies(judge_pictures(judge, pictures, scenes)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--judge", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--groups", nargs="*", help="only these groups of variants")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long, with what there is")
    arguments = parser.parse_args()
    start = time.monotonic()
    pipe = Pipeline.from_pretrained(arguments.model).to(arguments.device)
    judge = load_judge(arguments.device, arguments.judge)
    scenes = held_out_scenes(arguments.scenes, seed=7)
    prompts, seeds = [caption(scene) for scene in scenes], list(range(len(scenes)))
    sampling = Sampling.of(pipe, arguments.batch)
    dense = draw(pipe, prompts, seeds, DENSE, sampling)
    rows: list[dict[str, Any]] = [{"group": "dense", "label": "dense"} | measure(dense, dense, scenes, judge)]
    for redrawn in (1, 2, 3):
        again = draw(pipe, prompts, seeds, noise_floor(redrawn), sampling)
        label = f"dense, last {redrawn} drawn anew"
        rows.append({"group": "floor", "label": label} | measure(again, dense, scenes, judge))
    for group, label, method in variants():
        if arguments.groups and group not in arguments.groups:
            continue
        if time.monotonic() - start > 60 * arguments.minutes:
            break
        pictures = draw(pipe, prompts, seeds, Contender(label, method), sampling)
        rows.append({"group": group, "label": label} | measure(pictures, dense, scenes, judge))
        row = rows[-1]
        fidelity = "equal to dense" if row["psnr"] is None else f"{row['psnr']:6.2f} dB"
        print(f"{group:10} {label:32} {fidelity}  HF {row['high_frequency']:.3f}", flush=True)
    facts = {"command": command_line(__spec__), "device": arguments.device, "scenes": len(scenes)}
    facts |= {"torch": torch.__version__, "machine": platform.machine()}
    write_text(arguments.out, json.dumps({"facts": facts, "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
