"""Infinity as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.methods.base import Method, SublayerRef
from stepvar.models.blocks import (
    BlockRun,
    guided_logits,
    logit_rows,
    planned_cache,
)
from stepvar.models.infinity.config import InfinityConfig
from stepvar.models.infinity.rope import RotaryTables
from stepvar.models.infinity.schedules import schedule_for
from stepvar.models.infinity.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.infinity.tokenizer import BitTokenizer, latent_grid, resize
from stepvar.models.infinity.transformer import POLICY, BlockContext, Conditioning, InfinityTransformer
from stepvar.models.layers import Rotary
from stepvar.models.model import VARModel
from stepvar.models.precision import for_weight, parts_policy
from stepvar.models.work import (
    ScaleWork,
    Work,
    cross_attention_work,
    feed_forward_work,
    head_work,
    product_work,
    sampling_work,
    self_attention_work,
    stack_work,
)
from stepvar.text import TextFeatures


@dataclass(frozen=True)
class TextCondition:
    """Features of the prompts, and of the negative prompts if there are any (None: the learned null text)."""

    prompts: TextFeatures
    negative: TextFeatures | None = None


@dataclass
class InfinityState:
    """A running generation.

    Attributes:
        condition: what the text contributes, conditional rows first.
        rotary: position tables of all scales.
        cache: keys and values so far.
        latent: (B, d, H, W) float32, the sum of codes at full size.
        flops: floating-point operations so far.
    """

    condition: Conditioning
    rotary: RotaryTables
    cache: KVCache
    latent: Tensor
    flops: int = 0


class InfinityRun(BlockRun[InfinityState]):
    """The blocks of one scale; keeps what all of them share."""

    def __init__(self, model: Infinity, state: InfinityState, step: Step, method: Method) -> None:
        super().__init__(model.config.depth, state, step, method)
        self.model = model
        self.condition = state.condition.rows(step.row_slice)
        self._rotary: tuple[Tensor, Rotary] | None = None

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        config, transformer = self.model.config, self.model.transformer
        per_chunk = config.depth // config.block_chunks
        if layer == 0 or (config.level_every_chunk and layer % per_chunk == 0):
            tokens = tokens.with_features(tokens.features + transformer.lvl_embed.weight[self.step.index])
        context = BlockContext(
            modulation=self.condition.modulation[layer],
            text=self.condition.memory[layer],
            rotary=self._rotary_at,
            attend=self.attend,
            around=self.around,
        )
        return self.model.block_list[layer](tokens, layer, context)

    def sublayer_work(self, ref: SublayerRef, rows: int, count: int) -> Work:
        seen, text = self.state.cache.lengths[ref.layer], self.condition.text.shape[1]
        return self.model.sublayer_work(ref.name, rows, count, seen, text)

    def _rotary_at(self, positions: Tensor) -> Rotary:
        # Consecutive blocks see the same positions: gather their angles once.
        if self._rotary is None or self._rotary[0] is not positions:
            self._rotary = (positions, self.state.rotary.at(self.step.index, positions))
        return self._rotary[1]


class Infinity(VARModel):
    """A text-to-image model of the Infinity family (see ``docs/models/infinity.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    config: InfinityConfig
    tokenizer: BitTokenizer

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = InfinityTransformer(config)
        self.tokenizer = BitTokenizer(config.tokenizer)
        self.block_list = self.transformer.blocks  # a plain list: the blocks are registered once, in their chunks

    def schedule(self, height_over_width: float, resolution: str | None = None) -> ScaleSchedule:
        return schedule_for(resolution or self.config.resolution, height_over_width)

    def start(self, condition: TextCondition, plan: Plan, method: Method) -> InfinityState:
        if plan.smooth:
            raise UsageError("smooth: Infinity's codes are bits, which have no codebook to blend; leave it off")
        batch = len(condition.prompts)
        config = self.config
        cache = planned_cache(
            plan,
            batch,
            method,
            depth=config.depth,
            heads=config.heads,
            head_dim=config.head_dim,
            dtype=self.precision.blocks,
            device=self.device,
        )
        return InfinityState(
            condition=self.condition(condition, plan.guided),
            rotary=RotaryTables(plan.schedule, config.head_dim, self.device),
            cache=cache,
            latent=torch.zeros(batch, *config.latent_size(plan.schedule.grids[-1]), device=self.device),
        )

    def condition(self, condition: TextCondition, guided: bool) -> Conditioning:
        """The conditional rows, and behind them the unconditional ones when guidance is used."""
        prompts = condition.prompts.to(self.device, self.precision.residual)
        if not guided:
            return self.transformer.condition(prompts.features, prompts.lengths)
        if condition.negative is None:
            null = self.transformer.null_text(prompts.lengths, prompts.features.shape[1])
            negative = TextFeatures(null, prompts.lengths)
        else:
            negative = condition.negative.to(self.device, self.precision.residual)
        both = TextFeatures.join(prompts, negative)
        return self.transformer.condition(both.features, both.lengths)

    def embed(self, state: InfinityState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition)[step.row_slice]
        else:
            tokens = for_weight(self.next_tokens(state.latent, step), self.transformer.word_embed.weight)
            features = self.transformer.word_embed(tokens).repeat(step.branches, 1, 1)
            state.flops += self.embed_work(step).flops
        return TokenMap.dense(features, step.grid)

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """The picture so far, resampled to the grid of a scale: (B, N, token_bits)."""
        grid = latent_grid(step.grid, self.config.patchify)
        here = resize(latent, (grid.h, grid.w))
        if self.config.patchify:
            here = F.pixel_unshuffle(here, 2)
        return here.flatten(2).transpose(1, 2)

    def blocks(self, state: InfinityState, step: Step, method: Method) -> InfinityRun:
        return InfinityRun(self, state, step, method)

    def predict(self, state: InfinityState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, token_bits, 2)."""

        def logits(rows: int) -> Tensor:
            state.flops += self.predict_work(step).flops
            return self.transformer.logits(tokens.features[:rows], state.condition.pooled[step.row_slice][:rows])

        return guided_logits(logits, step)

    def sublayer_work(self, sublayer: str, rows: int, count: int, seen: int, text: int) -> Work:
        """A residual sub-layer of a block, for ``text`` text tokens."""
        width = self.config.width
        if sublayer == "self":
            return self_attention_work(rows, count, width, seen, rotary=True)
        if sublayer == "ffn":
            return feed_forward_work(rows, count, width, self.config.ffn_width)
        return cross_attention_work(rows, count, width, text)

    def embed_work(self, step: Step) -> Work:
        if step.index == 0:
            return Work()
        return product_work(step.samples * step.grid.size, self.config.token_bits, self.config.width)

    def predict_work(self, step: Step) -> Work:
        return head_work(logit_rows(step), step.grid.size, self.config.width, self.config.outputs)

    def scale_work(self, step: Step, tokens: Sequence[int], seen: Sequence[int], text: int) -> ScaleWork:
        stack = stack_work(self.sublayer_work, ("self", "cross", "ffn"), step, tokens, seen, text)
        drawn = sampling_work(step.samples, step.grid.size, self.config.outputs)
        return ScaleWork(stack, (self.embed_work(step), self.predict_work(step), drawn))

    def accumulate(self, state: InfinityState, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        codes = self.tokenizer.codes(self.latent_bits(symbols, step))
        state.latent += resize(codes, (state.latent.shape[-2], state.latent.shape[-1]))

    def latent_bits(self, symbols: Tensor, step: Step) -> Tensor:
        """Bits by token (B, N, token_bits) -> by latent cell (B, d, h, w)."""
        bits = symbols.transpose(1, 2).unflatten(2, (step.grid.h, step.grid.w))
        return F.pixel_shuffle(bits, 2) if self.config.patchify else bits
