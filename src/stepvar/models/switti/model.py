"""Switti as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.models.base import Staged
from stepvar.models.infinity.model import InfinityState, StagedText, TextCondition, TextRun, stage_text
from stepvar.models.precision import parts_policy
from stepvar.models.star.rope import rotary_tables
from stepvar.models.switti.config import SwittiConfig
from stepvar.models.switti.transformer import POLICY, SwittiTransformer
from stepvar.models.var.model import CodebookModel
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import VQTokenizer
from stepvar.text import PooledFeatures
from stepvar.text.clip import CONTEXT
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class PooledCondition:
    """Features of the prompts, and of what guidance leads away from; None: nothing, where there is no guidance."""

    prompts: PooledFeatures
    negative: PooledFeatures | None = None


@dataclass(frozen=True)
class StagedPooledText(Staged):
    """Texts on the device: the tokens, and the pooled vectors (R, pooled_channels), conditional rows first."""

    text: StagedText
    pooled: Tensor


class Switti(CodebookModel):
    """A text-to-image model of the Switti family (see ``docs/models/switti.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    run = TextRun
    sublayers = ("self", "cross", "ffn")
    config: SwittiConfig
    transformer: SwittiTransformer
    tokenizer: VQTokenizer

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__(config, SwittiTransformer(config), VQTokenizer(config.tokenizer))
        self.block_list = self.transformer.ordered_blocks  # a plain list: the blocks are registered once

    def stage(self, condition: PooledCondition, plan: Plan, padded: bool = False) -> StagedPooledText:
        levels, scope = len(self.config.patch_nums), self.config.schedule.kv_scope
        if len(plan.schedule) > levels or plan.schedule.kv_scope != scope:
            raise UsageError(
                f"schedule {plan.schedule.name!r}: this model runs at most {levels} scales, kv_scope={scope!r}"
            )
        prompts, negative = condition.prompts, condition.negative if plan.guided else None
        if plan.guided and negative is None:
            raise UsageError(
                "negative_prompt_embeds: guidance needs features of the empty text, which were not given; "
                "give them, or guidance_scale=1"
            )
        both = [prompts] if negative is None else [prompts, negative]
        device, dtype = self.device, self.precision.residual
        texts = TextCondition(*(one.text for one in both))
        text = stage_text(texts, plan.guided, padded, CONTEXT, device, dtype)
        pooled = [one.pooled if one.pooled.device == device else to_device_async(one.pooled, device) for one in both]
        return StagedPooledText(text, torch.cat(pooled).to(dtype))

    def begin(self, staged: StagedPooledText, plan: Plan) -> InfinityState:
        schedule, config = plan.schedule, self.config
        rotary = self.table(
            schedule,
            lambda: rotary_tables(schedule, config.head_dim, config.rope_theta, config.rope_size, self.device),
        )
        text = staged.text
        features = text.prompts if text.negative is None else torch.cat([text.prompts, text.negative])
        condition = self.transformer.condition(features, staged.pooled, text.mask)
        return InfinityState(condition, rotary, cache=self.new_cache(plan), latent=self.new_latent(plan))

    def embed(self, state: InfinityState, step: Step) -> TokenMap:
        if step.index == 0:
            features = self.transformer.first_tokens(state.condition.pooled[step.row_slice])
        else:
            features = self.code_tokens(state.latent, step)
        return TokenMap.dense(features + self.transformer.lvl_embed.weight[step.index], step.grid)
