"""VAR as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.models.base import Staged
from stepvar.models.blocks import BlockRun, GenerationState, ResidualStream
from stepvar.models.layers import FusedAttention
from stepvar.models.model import Shape, VARModel
from stepvar.models.precision import parts_policy
from stepvar.models.var.config import SquareConfig, VARConfig
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import VQTokenizer, as_tokens, shrink
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
class VARState(GenerationState):
    """A running generation; ``condition`` is what the classes contribute, conditional rows first."""

    condition: Conditioning


class VARRun(BlockRun[Any, Any]):
    """The blocks of one scale."""

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        context = BlockContext(self._modulation(layer), self.attend, self.hook, self.rotary_at)
        return self.model.transformer.ordered_blocks[layer](tokens, layer, context)

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        rotary = self.rotary_at(positions)
        cos, sin = (None, None) if rotary is None else (part.squeeze(1) for part in rotary)
        state = self.state
        attention = FusedAttention(state.cache, self.rows, (cos, sin), None, state.constants, self.attend_cached)
        self.model.transformer.ordered_blocks[layer].fused(stream, layer, self._modulation(layer), attention)

    def _modulation(self, layer: int) -> Tensor | None:
        modulation = self.state.condition.modulation[layer]
        return None if modulation is None else modulation[self.rows]


class CodebookModel(VARModel):
    """Base of the models that predict indices of a codebook."""

    sublayers: ClassVar[tuple[str, ...]] = ("self", "ffn")
    config: SquareConfig
    tokenizer: VQTokenizer

    def schedule(self, height_over_width: float = 1.0, resolution: str | None = None) -> ScaleSchedule:
        """The model's own schedule: no other was published.

        Raises:
            UsageError: if another shape or size is asked for.
        """
        schedule = self.config.schedule
        if height_over_width != 1.0:
            raise UsageError(f"aspect ratio (height / width) {height_over_width:g}: this model draws squares only")
        if resolution not in (None, schedule.name):
            raise UsageError(f"resolution {resolution!r}: this model draws {schedule.name} only")
        return schedule

    def shapes(self) -> list[Shape]:
        return [(None, 1.0, self.config.schedule[-1])]

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        return as_tokens(shrink(latent, step.grid))

    def accumulate(
        self,
        state: GenerationState,
        indices: Tensor,
        step: Step,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Adds the codes of the indices (B, N), or blends of all by ``weights`` (B, N, vocabulary)."""
        if weights is None:
            codes = self.tokenizer.codes(indices, step.grid)
        else:
            codes = self.tokenizer.soft_codes(weights, step.grid)
        if mask is not None:
            codes = codes * mask.unflatten(1, (step.grid.h, step.grid.w)).unsqueeze(1)
        state.latent += self.tokenizer.contribution(codes, step.index, step.settings.schedule)

    def codes(self, images: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        indices, _ = self.tokenizer.encode(images, schedule)
        return indices


class VAR(CodebookModel):
    """A class-conditional model of the VAR family (see ``docs/models/var.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    run = VARRun
    config: VARConfig
    transformer: VARTransformer

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config, VARTransformer(config), VQTokenizer(config.tokenizer))

    def stage(self, condition: ClassCondition, plan: Plan, padded: bool = False) -> StagedClasses:
        known, null = self.config.schedule, self.config.classes  # the null class comes last
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
        condition = self.transformer.condition(staged.labels)
        return VARState(condition, cache=self.new_cache(plan), latent=self.new_latent(plan))

    def embed(self, state: VARState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition.pooled[step.row_slice])
        else:
            features = self.code_tokens(state.latent, step)
        tokens = TokenMap.dense(features, step.grid)
        return tokens.with_features(features + self.transformer.places(step.index, tokens.positions))
