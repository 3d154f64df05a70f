"""Drawing many scenes with one method: what the quality benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.evaluation.metrics import high_frequency_energy, psnr
from stepvar.evaluation.scenes import accuracies, judge_pictures
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.conditioning import Subject
from stepvar.pipeline import Pipeline
from stepvar.plan import Plan
from stepvar.sampling import Noise, SeededNoise
from stepvar.scenes.grammar import Scene, caption
from stepvar.scenes.judge import Judge


class RedrawnNoise:
    """The draws of ``seeds`` for the early scales, those of other seeds from scale ``first`` on.

    Dense pictures drawn with it show how far two equally good answers for the late scales lie apart: the noise floor
    of every fidelity figure.
    """

    def __init__(self, seeds: Sequence[int], first: int) -> None:
        self.first = first
        self.early, self.late = SeededNoise(seeds), SeededNoise([seed + 1_000_003 for seed in seeds])

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        return (self.late if scale >= self.first else self.early).exponential(scale, shape, device)


@dataclass(frozen=True)
class Sampling:
    """Settings of a drawing run."""

    guidance: float = 3.0
    temperature: float = 0.6
    top_k: int = 0
    aspect: float = 1.0
    batch: int = 64


def draw(
    pipe: Pipeline,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    method: Method,
    sampling: Sampling,
    redrawn_from: int | None = None,
) -> Tensor:
    """Pictures (len(scenes), 3, H, W) in [0, 1], on the pipeline's device."""
    schedule = pipe.model.schedule(1 / sampling.aspect)
    count = len(schedule)
    plan = Plan(schedule, (sampling.guidance,) * count, (sampling.temperature,) * count, top_k=sampling.top_k)
    pictures = []
    for start in range(0, len(scenes), sampling.batch):
        part = slice(start, start + sampling.batch)
        prompts = [caption(scene) for scene in scenes[part]]
        noise: Noise = SeededNoise(seeds[part])
        if redrawn_from is not None:
            noise = RedrawnNoise(seeds[part], count - redrawn_from)
        condition = pipe.conditioner.request(Subject(prompts), 1).condition()
        state = generate(pipe.model, condition, len(prompts), plan, method, noise)
        pictures.append((pipe.model.decode(state).float() + 1) / 2)
    return torch.cat(pictures)


def measure(pictures: Tensor, dense: Tensor, scenes: Sequence[Scene], judge: Judge | None) -> dict[str, float | None]:
    """Mean fidelity to the dense pictures (None where they are equal), and how much of each caption is right."""
    each = psnr(pictures, dense)
    equal = bool(each.isinf().any())
    row: dict[str, float | None] = {
        "psnr": None if equal else float(each.mean()),
        "psnr_p10": None if equal else float(each.quantile(0.1)),
        "psnr_error": None if equal else float(each.std() / len(each) ** 0.5),
        "high_frequency": float((high_frequency_energy(pictures) / high_frequency_energy(dense)).mean()),
    }
    if judge is not None:
        row |= {name: share for name, (share, _) in accuracies(judge_pictures(judge, pictures, scenes)).items()}
    return row
