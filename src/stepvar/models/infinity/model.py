"""Infinity as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.cache import KVCache
from stepvar.methods.base import Method, Site
from stepvar.models.infinity.config import InfinityConfig
from stepvar.models.infinity.rope import RotaryTables
from stepvar.models.infinity.schedules import schedule_for
from stepvar.models.infinity.tokenizer import BitTokenizer, latent_grid, resize
from stepvar.models.infinity.transformer import BlockContext, Conditioning, InfinityTransformer
from stepvar.plan import Plan, Step
from stepvar.sampling import mix_branches
from stepvar.text import TextFeatures
from stepvar.tokens import ScaleSchedule, TokenMap


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


class BlockRun:
    """The blocks of one scale; keeps what all of them share."""

    def __init__(self, model: Infinity, state: InfinityState, step: Step, method: Method) -> None:
        self.model, self.state, self.step, self.method = model, state, step, method
        self.condition = state.condition.rows(step.rows)
        self.mixes = _mixing_layers(step, self.depth)
        self._rotary: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @property
    def depth(self) -> int:
        return self.model.config.depth

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        transformer, step = self.model.transformer, self.step
        per_chunk = self.depth // self.model.config.block_chunks
        for layer in range(first, self.depth if last is None else last):
            if layer == 0 or (self.model.config.level_every_chunk and layer % per_chunk == 0):
                tokens = tokens.with_features(tokens.features + transformer.lvl_embed.weight[step.index])
            tokens = self.model.block_list[layer](tokens, layer, self._context(layer))
            if layer in self.mixes:
                mixed = mix_branches(tokens.features, step.guidance)
                tokens = tokens.with_features(mixed.repeat(2, 1, 1))
        return tokens

    def _context(self, layer: int) -> BlockContext:
        return BlockContext(
            modulation=self.condition.modulation[layer],
            text=self.condition.memory[layer],
            rotary=self._rotary_at,
            attend=self._attend,
            around=self._around,
        )

    def _around(self, run: Callable[[TokenMap], Tensor], tokens: TokenMap, site: Site) -> Tensor:
        return self.method.run_sublayer(partial(self._counted, run, site), tokens, site, self.step)

    def _counted(self, run: Callable[[TokenMap], Tensor], site: Site, tokens: TokenMap) -> Tensor:
        update = run(tokens)
        self.state.flops += self.model.sublayer_flops(site, tokens, self.state, self.condition)
        return update

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.state.cache.append(layer, k, v)
        return F.scaled_dot_product_attention(q, keys, values, scale=1.0)

    def _rotary_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # Consecutive blocks see the same positions: gather their angles once.
        if self._rotary is None or self._rotary[0] is not positions:
            self._rotary = (positions, self.state.rotary.at(self.step.index, positions))
        return self._rotary[1]


def _mixing_layers(step: Step, depth: int) -> frozenset[int]:
    """Layers behind which guidance mixes the branches at this scale."""
    if step.branches == 1 or step.guidance == 1.0:
        return frozenset()
    return frozenset(depth + place for place in step.plan.guidance_at if place < 0)


class Infinity(nn.Module):
    """A text-to-image model of the Infinity family (see ``docs/models/infinity.md``)."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = InfinityTransformer(config)
        self.tokenizer = BitTokenizer(config.tokenizer)
        self.block_list = self.transformer.blocks  # a plain list: the blocks are registered once, in their chunks

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_start.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.pos_start.dtype

    def schedule(self, height_over_width: float, resolution: str | None = None) -> ScaleSchedule:
        return schedule_for(resolution or self.config.resolution, height_over_width)

    def start(self, condition: TextCondition, plan: Plan, method: Method) -> InfinityState:
        batch = len(condition.prompts)
        steps = list(plan.steps(batch))
        config = self.config
        capacities = [
            sum(method.tokens_at(step, layer, config.depth) for step in steps) for layer in range(config.depth)
        ]
        full = latent_grid(plan.schedule.grids[-1], config.patchify)
        return InfinityState(
            condition=self.condition(condition, plan.guided),
            rotary=RotaryTables(plan.schedule, config.head_dim, self.device),
            cache=KVCache(capacities, batch * plan.branches(0), config.heads, config.head_dim, self.dtype, self.device),
            latent=torch.zeros(batch, config.tokenizer.code_bits, full.h, full.w, device=self.device),
        )

    def condition(self, condition: TextCondition, guided: bool) -> Conditioning:
        """The conditional rows, and behind them the unconditional ones when guidance is used."""
        prompts = condition.prompts.to(self.device, self.dtype)
        if not guided:
            return self.transformer.condition(prompts.features, prompts.lengths)
        if condition.negative is None:
            null = self.transformer.null_text(prompts.lengths, prompts.features.shape[1])
            negative = TextFeatures(null, prompts.lengths)
        else:
            negative = condition.negative.to(self.device, self.dtype)
        both = TextFeatures.join(prompts, negative)
        return self.transformer.condition(both.features, both.lengths)

    def embed(self, state: InfinityState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition)[: step.rows]
        else:
            tokens = self.next_tokens(state.latent, step).to(self.dtype)
            features = self.transformer.word_embed(tokens).repeat(step.branches, 1, 1)
            state.flops += 2 * tokens.numel() * self.config.width
        return TokenMap.dense(features, step.grid)

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """The picture so far, resampled to the grid of a scale: (B, N, token_bits)."""
        grid = latent_grid(step.grid, self.config.patchify)
        here = resize(latent, (grid.h, grid.w))
        if self.config.patchify:
            here = F.pixel_unshuffle(here, 2)
        return here.flatten(2).transpose(1, 2)

    def blocks(self, state: InfinityState, step: Step, method: Method) -> BlockRun:
        return BlockRun(self, state, step, method)

    def predict(self, state: InfinityState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, token_bits, 2)."""
        mixing = step.branches == 2 and step.guidance != 1.0 and 0 in step.plan.guidance_at
        rows = step.rows if mixing else step.samples
        width, outputs = self.config.width, 2 * self.config.token_bits
        state.flops += 2 * rows * width * (step.grid.size * outputs + 2 * width)  # the head and its modulation
        logits = self.transformer.logits(tokens.features[:rows], state.condition.pooled[:rows]) / step.temperature
        return mix_branches(logits, step.guidance) if mixing else logits

    def accumulate(self, state: InfinityState, symbols: Tensor, step: Step) -> None:
        codes = self.tokenizer.codes(self.latent_bits(symbols, step))
        state.latent += resize(codes, (state.latent.shape[-2], state.latent.shape[-1]))

    def latent_bits(self, symbols: Tensor, step: Step) -> Tensor:
        """Bits by token (B, N, token_bits) -> by latent cell (B, d, h, w)."""
        bits = symbols.transpose(1, 2).unflatten(2, (step.grid.h, step.grid.w))
        return F.pixel_shuffle(bits, 2) if self.config.patchify else bits

    @torch.inference_mode()
    def decode(self, state: InfinityState) -> Tensor:
        return self.tokenizer.decode(state.latent)

    def sublayer_flops(self, site: Site, tokens: TokenMap, state: InfinityState, condition: Conditioning) -> int:
        """Multiplications and additions of the matrix products of a sub-layer that has just run."""
        rows, count, width = tokens.features.shape
        if site.sublayer == "self":
            seen = state.cache.lengths[site.layer]
            return 2 * rows * count * (4 * width * width + 2 * seen * width)
        if site.sublayer == "cross":
            return 2 * rows * count * (2 * width * width + 2 * condition.text.shape[1] * width)
        return 2 * rows * count * 2 * width * self.config.ffn_width
