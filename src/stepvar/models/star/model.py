"""STAR as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.sampling import exponential_race, sample_pass, soft_weights
from stepvar.core.tokens import Grid, TokenMap
from stepvar.errors import UsageError
from stepvar.models.blocks import GenerationState, ResidualStream, RotaryRun
from stepvar.models.infinity.model import StagedText, TextCondition, stage_text
from stepvar.models.layers import FusedAttention, Rotary
from stepvar.models.precision import parts_policy
from stepvar.models.star.config import STARConfig
from stepvar.models.star.rope import rotary_tables
from stepvar.models.star.sampler import Sampler, head_steps
from stepvar.models.star.transformer import POLICY, BlockContext, Conditioning, STARTransformer
from stepvar.models.var.model import CodebookModel
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import VQTokenizer
from stepvar.text import TextFeatures
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class PooledText(TextCondition):
    """Text features whose pooled vectors are others than the features of the last tokens.

    Attributes:
        pooled: (B, text_channels) of the prompts.
        negative_pooled: likewise of the negative prompts.
    """

    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None


@dataclass(frozen=True)
class StagedPrompts(StagedText):
    """Texts on the device, with a pooled vector per row: (R, text_channels)."""

    pooled: Tensor


@dataclass
class STARState(GenerationState):
    """A running generation.

    Attributes:
        condition: what the text contributes, conditional rows first.
        rotary: per scale, cosines and sines (grid.size, head_dim / 2) of its positions.
    """

    condition: Conditioning
    rotary: tuple[Rotary, ...]


class STARRun(RotaryRun["STAR", STARState]):
    """The blocks of one scale."""

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        text = self.state.condition.memory[layer].rows(self.rows)
        context = BlockContext(text, self.rotary_at, self.attend, self.hook)
        return self.model.transformer.ordered_blocks[layer](tokens, layer, context)

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        state = self.state
        rotary, positions = self.tables(positions)
        attention = FusedAttention(state.cache, self.rows, rotary, positions, state.constants, self.attend_cached)
        text = state.condition.memory[layer].rows(self.rows)
        self.model.transformer.ordered_blocks[layer].fused(stream, layer, text, attention)


class STAR(CodebookModel):
    """A text-to-image model of the STAR family (see ``docs/models/star.md``)."""

    sublayers = ("self", "cross", "ffn")
    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    run = STARRun
    config: STARConfig
    transformer: STARTransformer

    def __init__(self, config: STARConfig) -> None:
        super().__init__(config, STARTransformer(config), VQTokenizer(config.tokenizer))

    def stage(self, condition: TextCondition, plan: Plan, padded: bool = False) -> StagedPrompts:
        self._check(condition, plan)
        dtype = self.precision.residual
        text = stage_text(condition, plan.guided, padded, self.config.text_maxlen, self.device, dtype)
        pooled = pooled_rows(condition, plan.guided)
        if pooled.device != self.device:
            pooled = to_device_async(pooled, self.device)
        return StagedPrompts(text.prompts, text.negative, text.mask, pooled.to(dtype))

    def _check(self, condition: TextCondition, plan: Plan) -> None:
        """Raises a UsageError for a condition or a plan that is not the model's."""
        grids, scales = plan.schedule.grids, len(self.config.patch_nums)
        if len(grids) != scales or grids[0] != Grid(1, 1, 1) or any(grid.t > 1 for grid in grids):
            raise UsageError(
                f"schedule {plan.schedule.name!r}: this model runs {scales} scales of one picture, of which the first "
                "is 1x1"
            )
        if plan.guided and condition.negative is None:
            raise UsageError(
                "guidance: leads away from a text, and there is none; give negative_prompt_embeds (the features of an "
                "empty prompt), or guidance_scale=1"
            )
        if self.config.first_row_cross and any(step.split is not None for step in plan.steps):
            raise UsageError(
                "first_row_cross: the unconditional branch takes its attention to the text from the conditional one, "
                "so they cannot run in two processes; leave parallel out"
            )
        if self.config.first_row_cross and plan.samples > 1 and any(s.fewest_tokens < s.grid.size for s in plan.steps):
            raise UsageError(
                f"first_row_cross: {plan.samples} images at once, whose kept tokens differ; generate one at a time, or "
                "without pruning"
            )

    def begin(self, staged: StagedPrompts, plan: Plan) -> STARState:
        config, schedule = self.config, plan.schedule
        rotary = self.table(
            schedule,
            lambda: rotary_tables(schedule, config.head_dim, config.rope_theta, config.rope_span, self.device),
        )
        text = staged.prompts if staged.negative is None else torch.cat([staged.prompts, staged.negative])
        condition = self.transformer.condition(text, staged.mask, staged.pooled)
        return STARState(condition, rotary, cache=self.new_cache(plan), latent=self.new_latent(plan))

    def embed(self, state: STARState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition.pooled[step.row_slice])
        else:
            features = self.code_tokens(state.latent, step)
        return TokenMap.dense(features + self.transformer.lvl_embed.weight[step.index], step.grid)

    def in_steps(self, step: Step) -> bool:
        """Whether a pass is sampled in several steps."""
        return self.config.sampler is not None and step.index >= self.config.sampler_first

    def row_logits(self, state: STARState, features: Tensor, step: Step) -> Tensor:
        return self.transformer.logits(features)

    def predict(self, state: STARState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, vocabulary) in float32, of a pass in several steps those of the first one."""
        if self.in_steps(step) and not head_steps(self.config, step.index):
            none = tokens.features.new_zeros(step.samples, step.grid.size, self.config.tokenizer.channels)
            return Sampler(self, state, tokens, step).logits(none)
        return super().predict(state, tokens, step)

    def sample(
        self, state: STARState, tokens: TokenMap, logits: Tensor, step: Step, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        """Soft codes weigh all codes, whatever truncation says; passes in several steps have none."""
        if self.in_steps(step):
            return Sampler(self, state, tokens, step).sample(logits, noise), None
        if step.relative_scale is None:
            return sample_pass(logits, noise, step)
        drawn = noise.exponential(step.index, logits.shape, logits.device)
        return exponential_race(logits, drawn), soft_weights(logits, drawn, step.relative_scale)


def pooled_rows(condition: TextCondition, guided: bool) -> Tensor:
    """A pooled vector (R, text_channels) per row, the prompts first: the features of the last token, as CLIP pools."""
    texts = [condition.prompts, *([condition.negative] if guided and condition.negative is not None else [])]
    given = [condition.pooled, condition.negative_pooled] if isinstance(condition, PooledText) else [None, None]
    rows = (last_tokens(text) if own is None else own for text, own in zip(texts, given, strict=False))
    return torch.cat(list(rows))


def last_tokens(text: TextFeatures) -> Tensor:
    """The features (B, C) of the last token of each text."""
    return torch.stack([row[-1] for row in text.rows()])
