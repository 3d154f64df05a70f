"""HART as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import Hooks, Projection, run_dense
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.models.base import Staged
from stepvar.models.blocks import GenerationState
from stepvar.models.hart.config import HARTConfig
from stepvar.models.hart.rope import map_rotary, text_rotary
from stepvar.models.hart.tokenizer import HybridTokenizer
from stepvar.models.hart.transformer import POLICY, Conditioning, HARTTransformer
from stepvar.models.layers import Rotary
from stepvar.models.offload import in_turn
from stepvar.models.precision import parts_policy
from stepvar.models.var.model import CodebookModel, VARRun
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.transformer import BlockContext
from stepvar.text import ContextFeatures
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class StagedContext(Staged):
    """Texts on the device: features (B, T, C), mask of the words (B, T), places (B, T)."""

    features: Tensor
    mask: Tensor
    places: Tensor


@dataclass
class HARTState(GenerationState):
    """A running generation.

    Attributes:
        condition: what the text contributes, conditional rows first.
        null_hidden: (1, 1 or T, C), the unconditional text tokens after the blocks; None where one branch runs alone.
    """

    condition: Conditioning
    null_hidden: Tensor | None = None


class HARTRun(VARRun):
    """The blocks of one scale. The first runs on the text, with both branches on that of the conditional one only."""

    def __init__(self, model: HART, state: HARTState, step: Step, hooks: Hooks) -> None:
        super().__init__(model, state, step, hooks)
        self.rows = model.rows(step)
        if step.index == 0:
            self.cfg_blocks = frozenset()  # of the text, guidance combines the logits at most

    def rotary(self, positions: Tensor, step: Step) -> Rotary | None:
        config, condition = self.model.config, self.state.condition
        if config.positions == "learned":
            return None
        if step.index == 0:
            return text_rotary(condition.places[self.rows], config.head_dim)
        schedule, starts = step.settings.schedule, condition.places[self.rows, -1]
        return map_rotary(positions, step.grid, schedule.frame or schedule.grids[-1], starts, config.head_dim)


class HART(CodebookModel):
    """A text-to-image model of the HART family (see ``docs/models/hart.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    run = HARTRun
    config: HARTConfig
    transformer: HARTTransformer
    tokenizer: HybridTokenizer

    def __init__(self, config: HARTConfig) -> None:
        super().__init__(config, HARTTransformer(config), HybridTokenizer(config.tokenizer))

    def stage(self, condition: ContextFeatures, plan: Plan, padded: bool = False) -> StagedContext:
        self.check(condition, plan.schedule)
        features, mask, places = (
            part if part.device == self.device else to_device_async(part, self.device)
            for part in (condition.features, condition.mask, condition.places)
        )
        return StagedContext(features.to(self.precision.residual), mask, places)

    def begin(self, staged: StagedContext, plan: Plan) -> HARTState:
        condition = self.transformer.condition(staged.features, staged.mask, staged.places, plan.guided)
        cache = self.new_cache(plan, prefix=self.config.prefix)
        state = HARTState(condition, cache=cache, latent=self.new_latent(plan))
        if plan.steps[0].branches == 2:
            state.null_hidden = self._run_null(state, plan.samples)
        return state

    def check(self, text: ContextFeatures, schedule: ScaleSchedule) -> None:
        """Raises a UsageError for text or a schedule that does not fit the model."""
        config = self.config
        config.check_context("text features", text.features)
        grids = schedule.grids
        if config.positions == "learned" and grids != config.schedule.grids:
            raise UsageError(f"schedule {schedule.name!r}: this model knows only its own, {config.schedule.name}")
        if len(grids) != len(config.patch_nums) or grids[0] != Grid(1, 1, 1) or any(grid.t > 1 for grid in grids):
            raise UsageError(
                f"schedule {schedule.name!r}: this model runs {len(config.patch_nums)} scales of one picture, "
                "of which the first is 1x1"
            )

    def _run_null(self, state: HARTState, samples: int) -> Tensor:
        """Runs the text of the unconditional branch: one row for all samples, one token where all are alike."""
        null, count = state.condition.null, self.config.context_tokens
        rotary = None
        if self.config.positions == "rotary":
            rotary = text_rotary(torch.zeros(1, 1, device=self.device), self.config.head_dim)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _: Projection) -> Tensor:
            state.cache.place(layer, slice(samples, None), count, k, v)
            return F.scaled_dot_product_attention(q, k, v, scale=1.0)

        tokens = TokenMap.dense(null, Grid(1, 1, null.shape[1]))
        for layer, block in enumerate(in_turn(self.transformer.ordered_blocks)):
            modulation = state.condition.modulation[layer]
            rows = None if modulation is None else modulation[samples : samples + 1]
            context = BlockContext(rows, attend, run_dense, lambda _: rotary)
            tokens = block(tokens, layer, context)
        return tokens.features

    def rows(self, step: Step) -> slice:
        """Which rows of a state run at a scale; with both branches the unconditional text has been run beforehand."""
        return slice(0, step.samples) if step.index == 0 and step.branches == 2 else step.row_slice

    def embed(self, state: HARTState, step: Step) -> TokenMap:
        """The dense map of a scale; that of the first are the text tokens in a row."""
        if step.index == 0:
            context, null = state.condition.context, state.condition.null
            features = null.expand_as(context) if self.rows(step).start else context
            return TokenMap.dense(features, Grid(1, 1, self.config.context_tokens))
        tokens = TokenMap.dense(self.code_tokens(state.latent, step) + state.condition.levels[step.index], step.grid)
        return tokens.with_features(tokens.features + self.transformer.places(step.index, tokens.positions))

    def predict(self, state: HARTState, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, vocabulary); those of the first scale are read off the last text token."""
        if step.index == 0:
            features = tokens.features[:, -1:]
            if state.null_hidden is not None:
                null = state.null_hidden[:, -1:].expand(step.samples, -1, -1)
                features = torch.cat([features, null])
            tokens = tokens.with_features(features)
        return super().predict(state, tokens, step)

    def refine(
        self, state: HARTState, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise, mask: Tensor | None = None
    ) -> None:
        """Adds the residual that the diffusion head samples at the last scale of the schedule.

        Its condition takes the sampled codes even where soft ones were added.
        """
        if step.index < len(step.settings.schedule) - 1:
            return
        channels = self.config.tokenizer.channels
        shape = (step.samples, step.grid.size, channels)
        draw = partial(noise.normal, step.index, shape=shape, device=self.device)
        condition = self.residual_condition(tokens, indices)
        rest = self.transformer.diffloss.sample(condition, step.guidance, draw, step.every_row)
        if mask is not None:
            rest = rest * mask.unsqueeze(-1)
        state.latent += rest.transpose(1, 2).unflatten(2, (step.grid.h, step.grid.w))

    def residual_condition(self, tokens: TokenMap, indices: Tensor) -> Tensor:
        """What the diffusion head sees of each token: (R, N, C)."""
        drawn = self.transformer.embed(F.embedding(indices, self.tokenizer.codebook))
        branches = len(tokens.features) // len(indices)
        return self.transformer.decoder_norm(tokens.features + drawn.repeat(branches, 1, 1))
