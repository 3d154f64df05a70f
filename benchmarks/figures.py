"""The images of the documentation, by the embedded models: ``python -m benchmarks.figures``."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.leaderboard.chosen import read_chosen
from stepvar.checkpoints.examples import EXAMPLES
from stepvar.core.plan import Step
from stepvar.core.stack import RunBlocks
from stepvar.core.tokens import TokenMap
from stepvar.evaluation.metrics.fidelity import psnr
from stepvar.evaluation.prompts import load_prompts
from stepvar.evaluation.scenes.grammar import held_out_scenes
from stepvar.media.images import save_image
from stepvar.media.sheets import contact_sheet, difference, kept_overlay
from stepvar.methods import Dense, HighPass, Method, Random, SkipLast, StepVAR
from stepvar.methods.base import MethodState
from stepvar.methods.stepvar import structure_score, texture_score
from stepvar.pipeline import Pipeline
from training.captions import paraphrase

IMAGES = Path(__file__).parent.parent / "docs" / "images"
CAPTION = EXAMPLES["scenes"].textured[0]
SEED = 7

PROMPTS = Path(__file__).parent / "prompts" / "wardrobe.jsonl"
CHOSEN = Path(__file__).parent / "leaderboard" / "settings" / "wardrobe-operations.json"
COMPARED = (
    "drop-guidance last=2",
    "stepvar-plus@1.6",
    "stepvar@1.6",
    "random@1.6",
    "fastvar:hart@1.6",
    "skip-last count=1",
)

SMALLER = 0.57
"""Sheets are made for looking closely; on a page their tiles need no more pixels than the images have."""


@dataclass(frozen=True)
class RecordScores(Method[MethodState]):
    """Dense generation that records the two scores of every scale.

    Attributes:
        scores: (texture, structure) by pass, each (B, N); filled by the generation.
    """

    name: ClassVar[str] = "record-scores"

    scores: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: MethodState) -> TokenMap:
        features = tokens.features[: step.samples]
        self.scores[step.index] = texture_score(features, step.grid), structure_score(features, 8)
        return run(tokens)


def heat(scores: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Image.Image:
    """Scores (N,) of a grid as a grey map, brightest where highest (root scale, so that weak ones show)."""
    scaled = (scores / scores.max()).sqrt().view(grid).mul(255).byte().numpy()
    return Image.fromarray(np.ascontiguousarray(scaled)).convert("RGB").resize(size, Image.Resampling.NEAREST)


def pyramid(pipe: Pipeline) -> Image.Image:
    """The image after every second scale."""
    tiles: list[tuple[str, Image.Image]] = []

    def keep(step: Step, state: object) -> None:
        if step.index >= 2:
            tiles.append((f"after {step.grid}", pipe.preview(state)[0]))

    pipe(CAPTION, seed=SEED, callback_on_scale_end=keep)
    return contact_sheet(tiles, 4, [CAPTION, "the image after each scale"])


def scores(pipe: Pipeline) -> Image.Image:
    """Both scores and what is kept by them, at the last scale."""
    record = RecordScores()
    dense = pipe(CAPTION, seed=SEED, method=record).images[0]
    last = pipe.schedule().grids[-1]
    texture, structure = record.scores[max(record.scores)]
    tiles = [("dense", dense)]
    for name, score in (("texture score", texture), ("structure score", structure)):
        tiles.append((name, heat(score[0], dense.size, (last.h, last.w))))
    for method in (StepVAR(structure_weight=0), StepVAR(), StepVAR(structure_weight=1), StepVAR(structure_weight=100)):
        kept = pipe(CAPTION, seed=SEED, method=method).kept[-1][1][0]
        tiles.append((f"kept, weight {method.structure_weight:g}", kept_overlay(dense, kept)))
    return contact_sheet(
        tiles, 4, [CAPTION, f"the two scores at the {last} scale, and half of its tokens kept by them"]
    )


def same_seed(pipe: Pipeline) -> Image.Image:
    """The same seed with every method."""
    dense = pipe(CAPTION, seed=SEED).images[0]
    tiles = [("dense", dense)]
    methods: list[tuple[str, Method]] = [
        ("stepvar, keep 0.5", StepVAR(keep=0.5)),
        ("stepvar, keep 0.25", StepVAR(keep=0.25)),
        ("high-pass, keep 0.5", HighPass(keep=0.5)),
        ("random, keep 0.5", Random(keep=0.5)),
        ("skip-last 1", SkipLast(1)),
        ("skip-last 2", SkipLast(2)),
    ]
    differences = []
    for label, method in methods:
        image = pipe(CAPTION, seed=SEED, method=method).images[0]
        tiles.append((label, image))
        differences.append((f"{label}: difference x4", difference(dense, image, 4)))
    blank = Image.new("RGB", dense.size, "white")
    return contact_sheet([*tiles, ("", blank), *differences], len(tiles), [CAPTION, "the same seed with every method"])


def headline(pipe: Pipeline) -> Image.Image:
    """Dense beside StepVAR on two textured images, for the README."""
    tiles: list[tuple[str, Image.Image]] = []
    for text in EXAMPLES[pipe.name].textured[-2:]:
        dense, pruned = (pipe(text, seed=SEED, method=method) for method in (Dense(), StepVAR()))
        pair = [torch.from_numpy(np.asarray(output.images[0]) / 255).movedim(-1, 0)[None] for output in (pruned, dense)]
        step, kept = pruned.kept[-1]
        tiles += [
            (f"{text}: dense", dense.images[0]),
            (f"stepvar: PSNR {psnr(*pair).item():.1f} dB", pruned.images[0]),
            ("difference, 4 times amplified", difference(dense.images[0], pruned.images[0], 4)),
            (f"tokens computed at {step.grid}", kept_overlay(pruned.images[0], kept[0])),
        ]
    return contact_sheet(tiles, 4)


def samples(pipe: Pipeline) -> Image.Image:
    """The first held-out captions as they come, none chosen."""
    scenes = held_out_scenes(6, seed=3, objects=1) + held_out_scenes(6, seed=4, objects=2)
    captions = [paraphrase(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    images = pipe(captions, seed=list(range(100, 100 + len(scenes)))).images
    tiles = list(zip(captions, images, strict=True))
    return contact_sheet(tiles, 4, ["held-out captions, dense, as they come"])


def of_photographs(pipe: Pipeline) -> Image.Image:
    """Every ninety-sixth caption of the comparison, dense and with the methods at about 1.6 times fewer operations."""
    prompts = load_prompts(str(PROMPTS)).prompts[96::96]
    found = {entrant.label: entrant.method for entrant in read_chosen([CHOSEN], pipe).entrants}
    tiles: list[tuple[str, Image.Image]] = []
    for prompt in prompts:
        tiles.append((f"{prompt.text}: dense", pipe(prompt.text, seed=SEED).images[0]))
        for label in COMPARED:
            shown, _, budget = label.partition("@")
            title = f"{shown} at {budget}" if budget else shown
            tiles.append((title, pipe(prompt.text, seed=SEED, method=found[label]).images[0]))
    return contact_sheet(tiles, 1 + len(COMPARED))


MAKERS: dict[str, tuple[str, Callable[[Pipeline], Image.Image]]] = {
    "scales": ("scenes", pyramid),
    "scores": ("scenes", scores),
    "methods": ("scenes", same_seed),
    "demo": ("wardrobe", headline),
    "demo-scenes": ("scenes", headline),
    "scenes": ("scenes", samples),
    "wardrobe-methods": ("wardrobe", of_photographs),
}
"""By image, the model and what makes it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=MAKERS, help="only these")
    arguments = parser.parse_args()
    makers = {name: MAKERS[name] for name in MAKERS if not arguments.only or name in arguments.only}
    pipes = {model: Pipeline.from_pretrained(model) for model in {model for model, _ in makers.values()}}
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, (model, make) in makers.items():
        pipe = pipes[model]
        with torch.inference_mode():
            sheet = make(pipe)
        small = sheet.resize((round(SMALLER * sheet.width), round(SMALLER * sheet.height)), Image.Resampling.LANCZOS)
        suffix = ".jpg" if name == "wardrobe-methods" else ".png"  # photographs in many tiles are large in PNG
        save_image(small, IMAGES / f"{name}{suffix}", {"model": pipe.name, "seed": str(SEED)})
        print(f"{name}: written", flush=True)


if __name__ == "__main__":
    main()
