"""How often the embedded model follows its caption: ``python -m benchmarks.quality --out runs/quality.json``.

256 held-out captions, judged by the judge that was trained on real renders.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command_line
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.metrics.scenes import load_judge
from stepvar.evaluation.noise import ResampledNoise
from stepvar.evaluation.scenes.grammar import Scene, caption, held_out_scenes
from stepvar.evaluation.scenes.judge import Judge
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text
from training.verdicts import accuracies, judge_images

BINDINGS = ("colour_binding", "texture_binding", "size_binding", "objects")
"""What is asked of pairs: whether each attribute is where the caption puts it, and colour with shape."""


def generated(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], batch: int, resampled: int = 0, **settings: Any
) -> Tensor:
    """Images (len(prompts), 3, H, W) or videos (..., 3, F, H, W) in [0, 1], batch by batch.

    Args:
        resampled: how many of the last scales are sampled again, for the noise floor.
    """
    found, scales = [], len(pipe.schedule())
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        noise = ResampledNoise.of(seeds[part], scales - resampled)
        output = pipe(list(prompts[part]), noise=noise, output_type="pt", progress=False, **settings)
        found.append((output.videos if len(output.videos) else output.images).clamp(0, 1))
    return torch.cat(found)


def quality(judge: Judge, images: Tensor, scenes: list[Scene]) -> dict[str, tuple[float, int]]:
    """The figures of the model card: single objects, large textures, binding in two-object scenes."""
    verdicts = judge_images(judge, images, scenes)
    single = [v for v, s in zip(verdicts, scenes, strict=True) if len(s.objects) == 1]
    large = [v for v, s in zip(verdicts, scenes, strict=True) if len(s.objects) == 1 and s.objects[0].size == "large"]
    double = [v for v, s in zip(verdicts, scenes, strict=True) if len(s.objects) == 2]
    table = {name: accuracies(single)[name] for name in ("colour", "shape", "texture", "size")}
    table["texture (large)"] = accuracies(large)["texture"]
    table["background"] = accuracies(verdicts)["background"]
    table["count"] = accuracies(verdicts)["count"]
    pairs = accuracies(double)
    table |= {name: pairs[name] for name in BINDINGS}
    return table | {"everything": accuracies(verdicts)["everything"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--judge", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--aspect", type=float, default=1.0, help="width over height")
    parser.add_argument("--guidance", type=float, nargs="*", help="try these guidance scales")
    parser.add_argument("--temperature", type=float, nargs="*", help="try these temperatures")
    arguments = parser.parse_args()
    pipe = Pipeline.from_pretrained(arguments.model).to(arguments.device)
    judge = load_judge(arguments.device, arguments.judge)
    half = arguments.scenes // 2
    scenes = held_out_scenes(arguments.scenes - half, seed=3, objects=1) + held_out_scenes(half, seed=4, objects=2)
    seeds = list(range(100, 100 + len(scenes)))
    rows = []
    for guidance in arguments.guidance or [pipe.defaults["guidance_scale"]]:
        for temperature in arguments.temperature or [pipe.defaults["temperature"]]:
            images = generated(
                pipe,
                [caption(scene) for scene in scenes],
                seeds,
                arguments.batch,
                guidance_scale=guidance,
                temperature=temperature,
                aspect_ratio=arguments.aspect,
            )
            table = quality(judge, images, scenes)
            rows.append({"guidance": guidance, "temperature": temperature, "accuracy": table})
            shown = "  ".join(f"{name} {100 * share:.1f} % (n={n})" for name, (share, n) in table.items())
            print(f"guidance {guidance} temperature {temperature}: {shown}", flush=True)
    info = provenance(pipe.device, command_line(__spec__))
    write_text(arguments.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
