"""VAR as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.plan import Plan, Step, progress
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods.base import Method, SublayerRef
from stepvar.models.blocks import (
    BlockRun,
    guided_logits,
    planned_cache,
)
from stepvar.models.precision import for_weight, parts_policy
from stepvar.models.var.codebook import CodebookModel
from stepvar.models.var.config import VARConfig
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import VQTokenizer
from stepvar.models.var.transformer import POLICY, BlockContext, Conditioning, VARTransformer
from stepvar.models.work import (
    ScaleWork,
    Work,
    feed_forward_work,
    sampling_work,
    self_attention_work,
    stack_work,
)


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
        modulation = self.state.condition.modulation[layer][self.step.row_slice]
        return self.model.transformer.blocks[layer](tokens, layer, BlockContext(modulation, self.attend, self.around))

    def sublayer_work(self, ref: SublayerRef, rows: int, count: int) -> Work:
        return self.model.sublayer_work(ref.name, rows, count, self.state.cache.lengths[ref.layer])


class VAR(CodebookModel):
    """A class-conditional model of the VAR family (see ``docs/models/var.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    config: VARConfig

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = VARTransformer(config)
        self.tokenizer = VQTokenizer(config.tokenizer)

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
            features = self.transformer.first_tokens(state.condition.pooled[step.row_slice])
        else:
            codes = for_weight(self.next_tokens(state.latent, step), self.transformer.word_embed.weight)
            features = self.transformer.word_embed(codes).repeat(step.branches, 1, 1)
            state.flops += self.embed_work(step).flops
        tokens = TokenMap.dense(features, step.grid)
        return tokens.with_features(features + self.transformer.places(step.index, tokens.positions))

    def blocks(self, state: VARState, step: Step, method: Method) -> VARRun:
        return VARRun(self, state, step, method)

    def predict(self, state: VARState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, vocabulary)."""

        def logits(rows: int) -> Tensor:
            state.flops += self.predict_work(step).flops
            return self.transformer.logits(tokens.features[:rows], state.condition.pooled[step.row_slice][:rows])

        return guided_logits(logits, step)

    def sublayer_work(self, sublayer: str, rows: int, count: int, seen: int, text: int = 0) -> Work:
        """A residual sub-layer of a block."""
        if sublayer == "self":
            return self_attention_work(rows, count, self.config.width, seen)
        return feed_forward_work(rows, count, self.config.width, self.config.ffn_width)

    def scale_work(self, step: Step, tokens: Sequence[int], seen: Sequence[int], text: int = 0) -> ScaleWork:
        stack = stack_work(self.sublayer_work, self.sublayers, step, tokens, seen, text)
        drawn = sampling_work(step.samples, step.grid.size, self.config.outputs)
        return ScaleWork(stack, (self.embed_work(step), self.predict_work(step), drawn, self.accumulate_work(step)))
