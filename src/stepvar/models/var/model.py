"""VAR as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.guidance import guided_logits
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import SublayerHook
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.models.base import Staged
from stepvar.models.blocks import BlockRun, ResidualStream, planned_cache
from stepvar.models.layers import FusedAttention
from stepvar.models.precision import for_weight, parts_policy
from stepvar.models.var.codebook import CodebookModel
from stepvar.models.var.config import VARConfig
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import VQTokenizer
from stepvar.models.var.transformer import POLICY, BlockContext, Conditioning, VARTransformer
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class ClassCondition:
    """The class of each image; a negative number is the null class, an image of anything."""

    labels: tuple[int, ...]


@dataclass(frozen=True)
class StagedClasses(Staged):
    """Classes on the device: labels (R,), conditional rows first."""

    labels: Tensor


@dataclass
class VARState:
    """A running generation.

    Attributes:
        condition: what the classes contribute, conditional rows first.
        cache: keys and values so far.
        latent: (B, d, H, W) float32, the sum of what the scales add.
    """

    condition: Conditioning
    cache: KVCache
    latent: Tensor
    constants: dict[tuple[int, str], Tensor] = field(default_factory=dict)


class VARRun(BlockRun[VARState]):
    """The blocks of one scale."""

    def __init__(self, model: VAR, state: VARState, step: Step, hook: SublayerHook) -> None:
        super().__init__(model.config.depth, state, step, hook)
        self.model = model

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        modulation = self.state.condition.modulation[layer][self.step.row_slice]
        return self.model.transformer.blocks[layer](tokens, layer, BlockContext(modulation, self.attend, self.hook))

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        attention = FusedAttention(self.state.cache, self.rows, (None, None), None, self.state.constants)
        modulation = self.state.condition.modulation[layer][self.step.row_slice]
        self.model.transformer.ordered_blocks[layer].fused(stream, layer, modulation, attention)


class VAR(CodebookModel):
    """A class-conditional model of the VAR family (see ``docs/models/var.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    config: VARConfig

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = VARTransformer(config)
        self.tokenizer = VQTokenizer(config.tokenizer)

    def stage(self, condition: ClassCondition, plan: Plan, padded: bool = False) -> StagedClasses:
        known, null = self.config.schedule, self.transformer.null_class
        if plan.schedule.grids != known.grids:
            raise UsageError(f"schedule {plan.schedule.name!r}: this model knows only its own, {known.name}")
        for label in condition.labels:
            if label >= null:
                raise UsageError(f"class {label}: must be between 0 and {null - 1}")
        labels = [null if label < 0 else label for label in condition.labels]
        if plan.guided:
            labels += [null] * len(labels)
        return StagedClasses(to_device_async(torch.tensor(labels), self.device))

    def begin(self, staged: StagedClasses, plan: Plan) -> VARState:
        config = self.config
        cache = planned_cache(plan, config.heads, config.head_dim, self.precision.blocks, self.device)
        return VARState(
            condition=self.transformer.condition(staged.labels),
            cache=cache,
            latent=torch.zeros(plan.samples, *config.latent_size(plan.schedule.grids[-1]), device=self.device),
        )

    def embed(self, state: VARState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition.pooled[step.row_slice])
        else:
            codes = for_weight(self.next_tokens(state.latent, step), self.transformer.word_embed.weight)
            features = self.transformer.word_embed(codes).repeat(step.branches, 1, 1)
        tokens = TokenMap.dense(features, step.grid)
        return tokens.with_features(features + self.transformer.places(step.index, tokens.positions))

    def blocks(self, state: VARState, step: Step, hook: SublayerHook) -> VARRun:
        return VARRun(self, state, step, hook)

    def predict(self, state: VARState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, vocabulary)."""

        def logits(rows: int) -> Tensor:
            return self.transformer.logits(tokens.features[:rows], state.condition.pooled[step.row_slice][:rows])

        return guided_logits(logits, step)
