"""Prompts as conditions of a HART model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.hart.config import HARTConfig
from stepvar.models.inputs import VIDEO_ONLY, GenerationInputs, PromptInputProcessor, PromptInputs
from stepvar.text import ContextFeatures, Encoder


class ContextInputProcessor(PromptInputProcessor[ContextFeatures]):
    """Takes prompts, or features of exactly as many tokens as the model reads.

    Args:
        encoder: None if the caller brings features only.
        config: of the model.
    """

    def __init__(self, encoder: Encoder[ContextFeatures] | None, config: HARTConfig) -> None:
        super().__init__(encoder)
        self.config = config

    def prepare(self, inputs: GenerationInputs, times: int) -> PromptInputs[ContextFeatures]:
        inputs.refuse(VIDEO_ONLY, "it to a model that generates videos")
        inputs.refuse(["class_labels"], "a prompt")
        inputs.refuse(["negative_prompt", "negative_prompt_embeds"], "guidance_scale: it leads away from no text")
        return PromptInputs(self.encoder, self.read_prompts(inputs), times, None)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        return GenerationInputs(prompt_embeds=torch.zeros(1, self.config.context_tokens, self.config.context_channels))

    def read_features(self, name: str, given: Any) -> ContextFeatures:
        """Features with mask and places as they are; bare ones (T, C) or (B, T, C) are words all through."""
        if isinstance(given, Tensor):
            given = ContextFeatures.of(given)
        elif isinstance(given, (list, tuple)) and given and all(isinstance(one, Tensor) for one in given):
            given = ContextFeatures.stack([ContextFeatures.of(one) for one in given])
        if not isinstance(given, ContextFeatures):
            raise UsageError(f"{name}: give ContextFeatures, a tensor (T, C) or (B, T, C), or a list of (T, C)")
        self.config.check_context(name, given.features)
        return given
