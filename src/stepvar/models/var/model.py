"""VAR as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.cache import KVCache
from stepvar.errors import UsageError
from stepvar.methods.base import Method, Site
from stepvar.models.blocks import (
    BlockRun,
    feed_forward_flops,
    guided_logits,
    head_flops,
    planned_cache,
    self_attention_flops,
)
from stepvar.models.picture import PictureModel
from stepvar.models.precision import for_weight, parts_policy
from stepvar.models.var.config import VARConfig
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import VQTokenizer, as_tokens, shrink
from stepvar.models.var.transformer import POLICY, BlockContext, Conditioning, VARTransformer
from stepvar.plan import Plan, Step, progress
from stepvar.tokens import ScaleSchedule, TokenMap


@dataclass(frozen=True)
class ClassCondition:
    """The class of each image; a negative number is the null class, an image of anything."""

    labels: tuple[int, ...]


def ramped_guidance(scale: float, scales: int) -> tuple[float, ...]:
    """Guidance that grows from none at the first scale: ``1 + scale * k / (scales - 1)`` at scale k.

    VAR's guidance of ``scale`` at the last scale is ``(1 + scale) * conditional - scale * unconditional``.
    """
    return tuple(1 + scale * done for done in progress(scales))


@dataclass
class VARState:
    """A running generation.

    Attributes:
        condition: what the classes contribute, conditional rows first.
        cache: keys and values so far.
        latent: (B, d, H, W) float32, the sum of what the scales add.
        flops: floating-point operations so far.
    """

    condition: Conditioning
    cache: KVCache
    latent: Tensor
    flops: int = 0


class VARRun(BlockRun[VARState]):
    """The blocks of one scale."""

    def __init__(self, model: VAR, state: VARState, step: Step, method: Method) -> None:
        super().__init__(model.config.depth, state, step, method)
        self.model = model

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        modulation = self.state.condition.modulation[layer][: self.step.rows]
        return self.model.transformer.blocks[layer](tokens, layer, BlockContext(modulation, self.attend, self.around))

    def sublayer_flops(self, site: Site, tokens: TokenMap) -> int:
        if site.sublayer == "self":
            return self_attention_flops(tokens, self.state.cache.lengths[site.layer])
        return feed_forward_flops(tokens, self.model.config.ffn_width)


class VAR(PictureModel):
    """A class-conditional model of the VAR family (see ``docs/models/var.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    tokenizer: VQTokenizer

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = VARTransformer(config)
        self.tokenizer = VQTokenizer(config.tokenizer)

    def schedule(self, height_over_width: float = 1.0, resolution: str | None = None) -> ScaleSchedule:
        """The model's own schedule: its learned positions know no other.

        Raises:
            UsageError: if another shape or size is asked for.
        """
        schedule = self.config.schedule
        if height_over_width != 1.0:
            raise UsageError(f"aspect ratio (height / width) {height_over_width:g}: this model draws squares only")
        if resolution not in (None, schedule.name):
            raise UsageError(f"resolution {resolution!r}: this model draws {schedule.name} only")
        return schedule

    def start(self, condition: ClassCondition, plan: Plan, method: Method) -> VARState:
        """Prepares a generation.

        Raises:
            UsageError: for a class that does not exist or a schedule that is not the model's.
        """
        config = self.config
        if plan.schedule.grids != config.schedule.grids:
            raise UsageError(f"schedule {plan.schedule.name!r}: this model knows only its own, {config.schedule.name}")
        cache = planned_cache(
            plan,
            len(condition.labels),
            method,
            depth=config.depth,
            heads=config.heads,
            head_dim=config.head_dim,
            dtype=self.precision.blocks,
            device=self.device,
        )
        return VARState(
            condition=self.condition(condition, plan.guided),
            cache=cache,
            latent=torch.zeros(len(condition.labels), *config.latent_size(plan.schedule.grids[-1]), device=self.device),
        )

    def condition(self, condition: ClassCondition, guided: bool) -> Conditioning:
        """The conditional rows, and behind them the unconditional ones when guidance is used."""
        null = self.transformer.null_class
        for label in condition.labels:
            if label >= null:
                raise UsageError(f"class {label}: must be between 0 and {null - 1}")
        labels = [null if label < 0 else label for label in condition.labels]
        if guided:
            labels += [null] * len(labels)
        return self.transformer.condition(torch.tensor(labels, device=self.device))

    def embed(self, state: VARState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition.pooled[: step.rows])
        else:
            codes = for_weight(self.next_tokens(state.latent, step), self.transformer.word_embed.weight)
            features = self.transformer.word_embed(codes).repeat(step.branches, 1, 1)
            state.flops += 2 * codes.numel() * self.config.width
        tokens = TokenMap.dense(features, step.grid)
        return tokens.with_features(features + self.transformer.places(step.index, tokens.positions))

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """The picture so far, averaged down to the grid of a scale: (B, N, channels)."""
        return as_tokens(shrink(latent, step.grid))

    def blocks(self, state: VARState, step: Step, method: Method) -> VARRun:
        return VARRun(self, state, step, method)

    def predict(self, state: VARState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, vocabulary)."""
        outputs = self.config.outputs

        def logits(rows: int) -> Tensor:
            state.flops += head_flops(rows, step.grid.size, self.config.width, outputs)
            return self.transformer.logits(tokens.features[:rows], state.condition.pooled[:rows])

        return guided_logits(logits, step)

    def accumulate(self, state: VARState, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        channels = self.config.tokenizer.channels
        if weights is None:
            codes = self.tokenizer.codes(symbols, step.grid)
        else:
            codes = self.tokenizer.soft_codes(weights, step.grid)
            state.flops += 2 * weights.numel() * channels
        state.latent += self.tokenizer.contribution(codes, step.index, step.plan.schedule)
        state.flops += 2 * state.latent.numel() * 9 * channels  # the 3x3 convolution
