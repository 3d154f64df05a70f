"""Many methods on the same images, where the passes that none of them changes are run once.

Methods that leave the early scales alone give the same keys, values and codes there, so these are kept, and each method
goes on from them: on the embedded model a quarter of its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.sampling import sample_pass
from stepvar.generation import run_blocks, run_pass
from stepvar.methods import Method
from stepvar.models.inputs import GenerationInputs
from stepvar.pipeline import Pipeline

SHARED_FROM_END = 3
"""Scales at the end that each method runs by itself: those that are pruned, and the one that they are restored from."""


@dataclass
class SharedImages:
    """Dense images of some prompts, and the state of their generation after the shared passes.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        codes: sampled at each pass, by its index.
        probabilities: (B, N, bits, 2) or (B, N, classes) of each pass that is not shared, by its index.
    """

    pipe: Pipeline
    plan: Plan
    noise: SeededNoise
    state: Any
    lengths: list[int]
    latent: Tensor
    images: Tensor
    codes: dict[int, Tensor]
    probabilities: dict[int, Tensor]

    @classmethod
    @torch.inference_mode()
    def of(cls, pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> SharedImages:
        """Generates the dense images."""
        model, method = pipe.model, Method()
        plan = method.plan(pipe.settings(), model.info, len(prompts))
        inputs = pipe.inputs.prepare(GenerationInputs(prompt=list(prompts)), 1)
        state = model.start(inputs.encode(plan.schedule, ()).condition, plan)
        found = cls(pipe, plan, SeededNoise(seeds), state, [], state.latent, state.latent, {}, {})
        for step in plan.steps:
            if step.index == found.first:
                found.lengths, found.latent = list(state.cache.lengths), state.latent.clone()
            tokens = model.blocks(state, step)(model.embed(state, step))
            logits = model.predict(state, tokens, step)
            found.codes[step.index], _ = sample_pass(logits, found.noise, step)
            model.accumulate(state, found.codes[step.index], step)
            if step.index >= found.first:
                found.probabilities[step.index] = logits.softmax(dim=-1)
        found.images = found._decoded()
        return found

    @property
    def first(self) -> int:
        """The first pass that is not shared."""
        return len(self.plan.schedule) - SHARED_FROM_END

    @torch.inference_mode()
    def generate(self, method: Method) -> Tensor:
        """The images of a method (B, 3, H, W) in [0, 1], as the pipeline would generate them."""
        plan = self._restored(method)
        method_state = method.start(plan)
        method_state.use(self.noise)
        for step in plan.steps[self.first :]:
            run_pass(self.pipe.model, self.state, method, method_state, step, self.noise)
        return self._decoded()

    @torch.inference_mode()
    def flips(self, method: Method) -> Tensor:
        """How many codes a method would change, if the scales before were dense: a share for each image (B,).

        Every pass is run on the dense codes of those before it. With the same random numbers as many of its codes
        change as the probabilities differ; the shares of the passes are added. No sampling, no chance: differences
        between methods are seen on few images.
        """
        plan, model = self._restored(method), self.pipe.model
        method_state, found = method.start(plan), torch.zeros(plan.samples)
        for step in plan.steps[self.first :]:
            tokens = run_blocks(model, self.state, method, method_state, step)
            chosen = model.predict(self.state, tokens, step).softmax(dim=-1)
            apart = (chosen - self.probabilities[step.index]).abs().sum(dim=-1) / 2
            found += apart.flatten(1).mean(dim=1)
            model.accumulate(self.state, self.codes[step.index], step)
        return found

    def _restored(self, method: Method) -> Plan:
        """The plan of a method, with the state as the shared passes left it.

        Raises:
            ValueError: for a method that changes one of these.
        """
        plan = method.plan(self.pipe.settings(), self.pipe.model.info, self.plan.samples)
        shared = [_work(step) for step in plan.steps[: self.first]]
        if shared != [_work(step) for step in self.plan.steps[: self.first]]:
            raise ValueError(f"method {str(method)!r}: changes a pass before {self.first}, which all methods share")
        self.state.cache.lengths[:] = self.lengths
        self.state.latent = self.latent.clone()
        return plan

    def _decoded(self) -> Tensor:
        return ((self.pipe.model.decode(self.state) + 1) / 2).clamp(0, 1).float()


def _work(step: Step) -> tuple[object, ...]:
    return step.index, step.tokens, step.guidance, step.temperature, step.row_slice


def batches(
    pipe: Pipeline, prompts: Sequence[Any], seeds: Sequence[int], size: int
) -> Iterator[tuple[slice, SharedImages]]:
    """The dense images of prompts, batch by batch, and which of the prompts they are."""
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        yield part, SharedImages.of(pipe, [prompt.text for prompt in prompts[part]], seeds[part])
