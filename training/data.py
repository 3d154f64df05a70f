"""Endless captioned renders, never of a held-out scene."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.evaluation.scenes.render import render
from training.captions import paraphrase, sample_training_scene
from training.presets import RATIOS


@dataclass
class SceneSource:
    """Samples scenes, captions and images; the same seed gives the same stream."""

    seed: int
    device: torch.device
    stride: int

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def ratio(self) -> float:
        """A height over width, by the shares of the recipe."""
        return self.rng.choices(list(RATIOS), list(RATIOS.values()))[0]

    def sample(self, count: int, schedule: ScaleSchedule) -> tuple[list[str], Tensor]:
        """``count`` captions and images (count, 3, H, W) in [-1, 1] of the schedule's full size."""
        scenes = [sample_training_scene(self.rng) for _ in range(count)]
        captions = [paraphrase(scene, self.rng) for scene in scenes]
        seeds = [self.rng.getrandbits(31) for _ in scenes]
        last = schedule.grids[-1]
        images = render(scenes, seeds, last.h * self.stride, last.w * self.stride, device=self.device)
        return captions, images
