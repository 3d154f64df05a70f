"""Endless captioned clips, never of a held-out one."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.evaluation.scenes.clips.grammar import Clip
from stepvar.evaluation.scenes.clips.render import render_clips
from training.video.captions import paraphrase_clip, sample_training_clip


@dataclass
class ClipSource:
    """Samples clips; the same seed gives the same stream.

    Attributes:
        size: frames, height and width in pixels.
    """

    seed: int
    device: torch.device
    size: tuple[int, int, int]

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def sample(self, count: int) -> tuple[list[Clip], list[int], Tensor]:
        """``count`` clips, the seeds of their renders, and these (count, 3, T, H, W) in [-1, 1]."""
        clips = [sample_training_clip(self.rng) for _ in range(count)]
        seeds = [self.rng.getrandbits(31) for _ in clips]
        return clips, seeds, render_clips(clips, seeds, *self.size, device=self.device)

    def captions(self, clips: list[Clip]) -> list[str]:
        """A paraphrase for each clip."""
        return [paraphrase_clip(clip, self.rng) for clip in clips]
