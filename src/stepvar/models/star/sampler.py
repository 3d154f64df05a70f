"""Sampling a scale in several steps: positions are revealed a few at a time, and later ones see the codes of earlier.

This is the sampler of STAR (Ma et al., arXiv 2406.10797: causal-driven stable sampling). At each step all positions are
sampled and some of them keep their code: at random in the first steps, later those that were sampled with the highest
probability. The logits come from a small transformer that sees the features of the scale and the codes so far, or, in
the first steps of version ``"1024"``, from the head of the large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.noise import Noise
from stepvar.core.plan import Step
from stepvar.core.sampling import exponential_race, truncate
from stepvar.core.stack import NO_HOOKS, AttentionInputs, Projection
from stepvar.core.tokens import Grid, TokenMap
from stepvar.models.blocks import BlockRun, ResidualStream
from stepvar.models.layers import FusedAttention, Rotary
from stepvar.models.star.config import STARConfig
from stepvar.models.var.transformer import BlockContext

STEPS = 8
LONG_STEPS, LONG_AFTER = 15, 12
"""Version ``"1024"``: the steps of the scales after this one."""
HEAD_STEPS = 5
"""Version ``"1024"``: the steps at the other scales whose logits come from the head."""
RANDOM_STEPS = 5
"""The first steps, which reveal positions at random."""


def step_count(config: STARConfig, scale: int) -> int:
    """The steps of a scale, counted from 0."""
    return LONG_STEPS if config.sampler == "1024" and scale > LONG_AFTER else STEPS


def head_steps(config: STARConfig, scale: int) -> int:
    """How many of them take their logits from the transformer's head."""
    return HEAD_STEPS if config.sampler == "1024" and scale <= LONG_AFTER else 0


@lru_cache
def reveal_counts(size: int, steps: int) -> tuple[int, ...]:
    """How many of ``size`` positions each step reveals: more and more, by the inverse cosine, at least one.

    In float32 with this very arithmetic, as rounding decides; the last step reveals what is left.
    """
    shares = torch.linspace(1, 0, steps, dtype=torch.float32, device="cpu").arccos() / (math.pi * 0.5)
    counts = [max(int(count), 1) for count in (shares / shares.sum() * size).round().tolist()]
    return *counts[:-1], max(size - sum(counts[:-1]), 0)


class Draw(NamedTuple):
    """One step.

    Attributes:
        logits: (B, N, vocabulary), with guidance and temperature.
        sampled: (B, N), an index for every position.
        indices: (B, N), those of the positions revealed so far; 0 elsewhere.
        known: (B, N), which positions are revealed.
    """

    logits: Tensor
    sampled: Tensor
    indices: Tensor
    known: Tensor


class SamplerRun(BlockRun[Any, Any]):
    """The blocks of the sampler, numbered after those of the transformer. Tokens attend to each other, and no cache."""

    def run(self, tokens: Tensor) -> Tensor:
        """(R, 1 + N, C) -> (R, 1 + N, C)."""
        blocks = self.model.transformer.sampler_blocks
        token_map = TokenMap.dense(tokens, Grid(1, 1, tokens.shape[1]))
        return self(token_map, self.depth, self.depth + len(blocks)).features

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        context = BlockContext(None, self.attend, self.hook, self.rotary_at)
        return self.model.transformer.sampler_blocks[layer - self.depth](tokens, layer, context)

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        config, constants, (rows, count) = self.model.config, self.state.constants, positions.shape
        own = KVCache([count], rows, config.heads, config.head_dim, self.state.cache.dtype, positions.device)
        cos, sin = (part.squeeze(1) for part in self.rotary_at(positions))
        attention = FusedAttention(own, slice(0, rows), (cos, sin), None, constants, self.attend_cached)
        self.model.transformer.sampler_blocks[layer - self.depth].fused(stream, 0, None, attention)

    def rotary(self, positions: Tensor, step: Step) -> Rotary:
        """The first token is at the place of the first scale, which is not turned."""
        cos, sin = (
            torch.cat([first[:1], own])[None, None]
            for first, own in zip(self.state.rotary[0], self.state.rotary[step.index], strict=True)
        )
        return cos, sin

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, projection: Projection) -> Tensor:
        return self.attend_cached(layer, AttentionInputs(q, k, v, projection))

    def attend_cached(self, layer: int, inputs: AttentionInputs) -> Tensor:
        return self.plain_attention(inputs)


class Sampler:
    """Samples one scale in several steps.

    Args:
        model, state: of the generation.
        tokens: the dense map of the scale after the transformer's blocks.
        step: the pass.
    """

    def __init__(self, model: Any, state: Any, tokens: TokenMap, step: Step) -> None:
        self.model, self.state, self.tokens, self.step = model, state, tokens, step
        self.shape = (step.samples, step.grid.size)

    @cached_property
    def blocks(self) -> SamplerRun:
        return SamplerRun(self.model, self.state, replace(self.step, together=()), NO_HOOKS)

    def sample(self, logits: Tensor, noise: Noise) -> Tensor:
        """The indices (B, N); arguments as for :meth:`draws`."""
        for draw in self.draws(logits, noise):  # one at a time: logits are the largest tensors of a pass
            indices = draw.indices
        return indices

    def draws(self, logits: Tensor, noise: Noise) -> Iterator[Draw]:
        """The steps, one after the other.

        Args:
            logits: those of the first step, (B, N, vocabulary).
            noise: where random numbers come from: each step asks for those of its sample, and for others if it reveals
                positions at random.
        """
        config, scale, device = self.model.config, self.step.index, logits.device
        known = torch.zeros(self.shape, dtype=torch.bool, device=device)
        indices = torch.zeros(self.shape, dtype=torch.int64, device=device)
        by_head = head_steps(config, scale)
        for turn, count in enumerate(reveal_counts(self.step.grid.size, step_count(config, scale))):
            if turn and turn >= by_head:
                logits = self.logits(F.embedding(indices, self.model.tokenizer.codebook) * known.unsqueeze(-1))
            sampled, confidence = self._sample(logits, noise, turn)
            before, order = known, confidence
            if turn < by_head:
                known = known | highest(confidence, count)
            if turn < RANDOM_STEPS:
                order = noise.exponential(scale, self.shape, device, f"order {turn}")
            known = known | highest(order.masked_fill(known, -1.0), count)
            indices = torch.where(known & ~before, sampled, indices)
            yield Draw(logits, sampled, indices, known)

    def logits(self, codes: Tensor) -> Tensor:
        """Logits (B, N, vocabulary) of the small transformer after the codes (B, N, d), with temperature and guidance.

        Its guidance does not grow over the scales.
        """
        step, full = self.step, self.step.settings.full_guidance
        if step.applies_cfg and full is not None:
            step = replace(step, guidance=full)
        return step.guided_logits(lambda rows: self.row_logits(codes, rows)[:, 1:])

    def row_logits(self, codes: Tensor, rows: int) -> Tensor:
        """Logits (R, 1 + N, vocabulary) of the first rows, before guidance, with those of the text token."""
        transformer = self.model.transformer
        text = self.state.condition.sampler[self.step.row_slice][:rows]
        codes = codes.repeat(rows // len(codes), 1, 1)
        tokens = transformer.sampler_tokens(text, self.tokens.features[:rows], codes, self.step.index)
        return transformer.sampler_logits(self.blocks.run(tokens))

    def _sample(self, logits: Tensor, noise: Noise, turn: int) -> tuple[Tensor, Tensor]:
        """The indices (B, N) and the probability of each after truncation."""
        step, name = self.step, f"step {turn}" if turn else None
        kept = truncate(logits, step.top_k, step.settings.top_p)
        if step.top_k == 1:
            sampled = logits.argmax(dim=-1)
        else:
            sampled = exponential_race(kept, noise.exponential(step.index, logits.shape, logits.device, name))
        return sampled, kept.softmax(dim=-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)


def highest(scores: Tensor, count: int) -> Tensor:
    """Which of (B, N) are among the ``count`` highest of their row, the first of equal ones: (B, N) bool."""
    # A stable sort: which of equal scores top-k takes may depend on the device and on the batch.
    order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
