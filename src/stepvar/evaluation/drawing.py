"""Drawing the same pictures with many methods: what all candidates share is made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan
from stepvar.evaluation.costs import Clock
from stepvar.evaluation.noise import CachedNoise, RedrawnNoise
from stepvar.generation import generate
from stepvar.methods import Dense, Method
from stepvar.models.inputs import Subject
from stepvar.pipeline import Pipeline


@dataclass(frozen=True)
class Candidate:
    """One row of a comparison.

    Attributes:
        label: its name in tables.
        method: what draws.
        redrawn: the last scales whose draws are made anew: with dense generation, the noise floor.
    """

    label: str
    method: Method
    redrawn: int = 0


DENSE = Candidate("dense", Dense())


def noise_floor(last: int) -> Candidate:
    """Dense generation with the draws of the last scales made anew and nothing pruned."""
    return Candidate(f"floor-{last}", Dense(), redrawn=last)


@dataclass(frozen=True)
class Sampling:
    """Settings of a drawing run: guidance, temperature, truncation, width over height, pictures at once."""

    guidance: float = 3.0
    temperature: float = 0.6
    top_k: int = 0
    aspect: float = 1.0
    batch: int = 64

    @classmethod
    def of(cls, pipe: Pipeline, batch: int = 64) -> Sampling:
        """The model's own."""
        return cls(pipe.defaults["guidance_scale"], pipe.defaults["temperature"], batch=batch)

    def plan(self, pipe: Pipeline) -> Plan:
        return pipe.plan(
            guidance_scale=self.guidance, temperature=self.temperature, top_k=self.top_k, aspect_ratio=self.aspect
        )


@dataclass(frozen=True)
class Drawn:
    """Pictures of one candidate.

    Attributes:
        pictures: (B, 3, H, W) in [0, 1], on the device.
        flops: operations of the loop over scales, of the whole batch.
        clock: marks in front of the loop, behind it, and behind decoding.
    """

    pictures: Tensor
    flops: int
    clock: Clock


class Batch:
    """Prompts and seeds that every candidate draws; text and draws are computed once.

    Args:
        pipe: the model.
        prompts: one per picture.
        seeds: one per picture.
        plan: the settings of the generation.
    """

    def __init__(self, pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], plan: Plan) -> None:
        self.pipe, self.plan, self.samples = pipe, plan, len(prompts)
        subject: dict[str, Any] = {pipe.conditioner.argument: list(prompts)}
        with torch.inference_mode():
            self.condition = pipe.conditioner.request(Subject(**subject), 1).condition()
        redrawn = RedrawnNoise.of(seeds, 0)
        self.early, self.late = CachedNoise(redrawn.early), CachedNoise(redrawn.late)

    def draw(self, candidate: Candidate) -> Drawn:
        """The pictures of one candidate; nothing waits for the device."""
        noise: Noise = self.early
        if candidate.redrawn:
            noise = RedrawnNoise(self.early, self.late, len(self.plan.schedule) - candidate.redrawn)
        clock = Clock(self.pipe.device)
        clock.mark()
        state = generate(self.pipe.model, self.condition, self.samples, self.plan, candidate.method, noise)
        clock.mark()
        with torch.inference_mode():
            pictures = ((self.pipe.model.decode(state).float() + 1) / 2).clamp(0, 1)
        clock.mark()
        return Drawn(pictures, state.flops, clock)


def draw(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], candidate: Candidate, sampling: Sampling
) -> Tensor:
    """Pictures (len(prompts), 3, H, W) in [0, 1] of one candidate, batch by batch."""
    plan, pictures = sampling.plan(pipe), []
    for start in range(0, len(prompts), sampling.batch):
        part = slice(start, start + sampling.batch)
        pictures.append(Batch(pipe, prompts[part], seeds[part], plan).draw(candidate).pictures)
    return torch.cat(pictures)
