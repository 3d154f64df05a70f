"""Infinity as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.models.base import Staged
from stepvar.models.blocks import GenerationState, ResidualStream, RotaryRun
from stepvar.models.infinity.config import InfinityConfig
from stepvar.models.infinity.rope import rotary_tables
from stepvar.models.infinity.schedules import RATIOS, RESOLUTIONS, schedule_for
from stepvar.models.infinity.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.infinity.tokenizer import BitTokenizer, resize
from stepvar.models.infinity.transformer import POLICY, BlockContext, Conditioning, InfinityTransformer
from stepvar.models.layers import FusedAttention, Rotary
from stepvar.models.model import Shape, VARModel
from stepvar.models.precision import parts_policy
from stepvar.text import TextFeatures, length_mask, pad_to_device, text_bucket
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class TextCondition:
    """Features of the prompts, and of the negative prompts if there are any (None: the learned null text)."""

    prompts: TextFeatures
    negative: TextFeatures | None = None


@dataclass(frozen=True)
class StagedText(Staged):
    """Texts on the device.

    Attributes:
        prompts: (B, L, text_channels).
        negative: (B, L, text_channels); None: the learned null text, if there is guidance.
        mask: (R, 1, 1, L), which tokens of a row are there; None: all.
    """

    prompts: Tensor
    negative: Tensor | None
    mask: Tensor | None

    def rows(self, guided: bool, null_text: Callable[[int, int], Tensor]) -> Tensor:
        """All rows (R, L, text_channels): the prompts, and after them the unconditional texts if guided.

        Args:
            null_text: (batch, length) -> as many rows of the learned null text as there are, up to the length.
        """
        if not guided:
            return self.prompts
        batch, length, _ = self.prompts.shape
        negative = null_text(batch, length) if self.negative is None else self.negative
        return torch.cat([self.prompts, F.pad(negative, (0, 0, 0, length - negative.shape[1]))])


def stage_text(
    condition: TextCondition, guided: bool, padded: bool, longest: int, device: torch.device, dtype: torch.dtype
) -> StagedText:
    """Prompts and negative prompts on a device, padded to the same length.

    Args:
        longest: tokens that the model reads at most.
    """
    prompts, negative = condition.prompts, condition.negative if guided else None
    size = max(prompts.features.shape[1], 0 if negative is None else negative.features.shape[1])
    if padded:
        size = max(size, text_bucket(size, longest))
    lengths = prompts.lengths
    if guided:
        lengths += prompts.lengths if negative is None else negative.lengths
    mask = None
    if padded or min(lengths) < size:
        mask = to_device_async(length_mask(lengths, size), device)
    return StagedText(
        pad_to_device(prompts, size, device, dtype),
        None if negative is None else pad_to_device(negative, size, device, dtype),
        mask,
    )


@dataclass
class InfinityState(GenerationState):
    """A running generation.

    Attributes:
        condition: what the text contributes, conditional rows first.
        rotary: per scale, cosines and sines (grid.size, head_dim / 2) of its positions.
    """

    condition: Conditioning
    rotary: tuple[Rotary, ...]


class TextRun(RotaryRun[Any, InfinityState]):
    """The blocks of one scale, which attend to a text and have rotary positions."""

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        level = self.added_before(layer)
        if level is not None:
            tokens = tokens.with_features(tokens.features + level)
        context = BlockContext(
            modulation=self.state.condition.modulation[layer][self.rows],
            text=self.state.condition.memory[layer].rows(self.rows),
            rotary=self.rotary_at,
            attend=self.attend,
            hook=self.hook,
        )
        return self.model.block_list[layer](tokens, layer, context)

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        level = self.added_before(layer)
        if level is not None:
            stream.add(level.expand_as(stream.read()))
        modulation = self.state.condition.modulation[layer][self.rows]
        text = self.state.condition.memory[layer].rows(self.rows)
        self.model.block_list[layer].fused(stream, layer, modulation, text, self.fused_attention(layer, positions))

    def fused_attention(self, layer: int, positions: Tensor) -> FusedAttention:
        rotary, positions = self.tables(positions)
        constants = self.state.constants
        return FusedAttention(self.cache(layer), self.rows, rotary, positions, constants, self.attend_cached)


class InfinityRun(TextRun):
    """Those of Infinity, some of which add the embedding of the scale first."""

    def embedding_before(self, layer: int) -> Tensor | None:
        """That of the scale, in front of the first block or of every chunk of them."""
        config = self.model.config
        if layer == 0 or (config.level_every_chunk and layer % (config.depth // config.block_chunks) == 0):
            return self.levels()
        return None

    def levels(self) -> Tensor:
        """The embeddings of the scales of the tokens: (C,), or (N, C) where several scales run."""
        weight: Tensor = self.model.transformer.lvl_embed.weight
        if len(self.steps) == 1:
            return weight[self.step.index]
        return torch.cat(
            [weight[step.index].expand(count, -1) for step, count in zip(self.steps, self.counts, strict=True)]
        )


class Infinity(VARModel):
    """A text-to-image model of the Infinity family (see ``docs/models/infinity.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    run = InfinityRun
    config: InfinityConfig
    transformer: InfinityTransformer
    tokenizer: BitTokenizer

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__(config, InfinityTransformer(config), BitTokenizer(config.tokenizer))
        self.block_list = self.transformer.blocks  # a plain list: the blocks are registered once, in their chunks

    def schedule(self, height_over_width: float, resolution: str | None = None) -> ScaleSchedule:
        return schedule_for(self.config.resolution if resolution is None else resolution, height_over_width)

    def shapes(self) -> Iterator[Shape]:
        for name, scales in RESOLUTIONS.items():
            for ratio, sides in RATIOS.items():
                yield name, ratio, Grid(1, *sides[scales - 1])

    def stage(self, condition: TextCondition, plan: Plan, padded: bool = False) -> StagedText:
        if plan.settings.smooth:
            raise UsageError("smooth: Infinity's codes are bits, which have no codebook to blend; leave it off")
        longest = self.config.text_maxlen
        return stage_text(condition, plan.guided, padded, longest, self.device, self.precision.residual)

    def begin(self, staged: StagedText, plan: Plan) -> InfinityState:
        schedule, head_dim = plan.schedule, self.config.head_dim
        rotary = self.table(schedule, lambda: rotary_tables(schedule, head_dim, self.device))
        condition = self.condition(staged, plan.guided)
        return InfinityState(condition, rotary, cache=self.new_cache(plan), latent=self.new_latent(plan))

    def condition(self, staged: StagedText, guided: bool) -> Conditioning:
        """The conditional rows, and after them the unconditional ones when guidance is used."""
        return self.transformer.condition(staged.rows(guided, self.transformer.null_text), staged.mask)

    def embed(self, state: InfinityState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition)[step.row_slice]
        else:
            features = self.code_tokens(state.latent, step)
        return TokenMap.dense(features, step.grid)

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """The accumulated latent, resampled to the grid of a scale: (B, N, token_bits)."""
        _, height, width = self.config.latent_size(step.grid)
        if step.settings.resampling == "area":
            here = F.interpolate(latent, size=(height, width), mode="area")
        else:
            here = resize(latent, (height, width))
        if self.config.patchify:
            here = F.pixel_unshuffle(here, 2)
        return here.flatten(2).transpose(1, 2)

    def accumulate(
        self,
        state: InfinityState,
        indices: Tensor,
        step: Step,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        codes = self.tokenizer.codes(self.latent_bits(indices, step))
        if mask is not None:
            codes = codes * self.latent_bits(mask.unsqueeze(-1).expand_as(indices), step)
        state.latent += resize(codes, (state.latent.shape[-2], state.latent.shape[-1]))

    def latent_bits(self, indices: Tensor, step: Step) -> Tensor:
        """Bits by token (B, N, token_bits) -> by latent cell (B, d, h, w)."""
        bits = indices.transpose(1, 2).unflatten(2, (step.grid.h, step.grid.w))
        return F.pixel_shuffle(bits, 2) if self.config.patchify else bits

    def codes(self, images: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        cells = ScaleSchedule.of([self.config.latent_size(grid)[1:] for grid in schedule])
        bits, _ = self.tokenizer.encode(images, cells)
        if self.config.patchify:
            bits = [F.pixel_unshuffle(bit, 2) for bit in bits]
        return [bit.flatten(2).transpose(1, 2).long() for bit in bits]
