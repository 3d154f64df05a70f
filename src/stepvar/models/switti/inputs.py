"""Prompts as conditions of a Switti model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.inputs import VIDEO_ONLY, EncodedInputs, GenerationInputs, PromptInputProcessor, PromptInputs
from stepvar.models.switti.config import SwittiConfig
from stepvar.models.switti.model import PooledCondition
from stepvar.text import Encoder, PooledFeatures
from stepvar.text.clip import CONTEXT


@dataclass(frozen=True)
class PooledInputs(PromptInputs[PooledFeatures]):
    """Prompts and their negatives, one per prompt; None: there is no encoder for the empty text."""

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        negative = None if self.negatives is None else self.features(self.negatives)
        return EncodedInputs(PooledCondition(self.features(self.prompts), negative))


class PooledInputProcessor(PromptInputProcessor[PooledFeatures]):
    """Takes prompts, negative prompts, and features of both with their pooled vectors.

    Without a negative prompt guidance leads away from the empty text.

    Args:
        encoder: None if the caller brings features only.
        config: of the model.
    """

    def __init__(self, encoder: Encoder[PooledFeatures] | None, config: SwittiConfig) -> None:
        super().__init__(encoder)
        self.config = config

    def prepare(self, inputs: GenerationInputs, times: int) -> PooledInputs:
        inputs.refuse(VIDEO_ONLY, "it to a model that generates videos")
        inputs.refuse(["class_labels"], "a prompt")
        prompts = self.read_prompts(inputs)
        negatives = self.words_or_features("negative_prompt", inputs.negative_prompt, inputs.negative_prompt_embeds)
        if negatives is None and self.encoder is not None:
            negatives = [""]
        if negatives is not None:
            negatives = self.one_per_prompt(negatives, len(prompts))
        return PooledInputs(self.encoder, prompts, times, negatives)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        config, length = self.config, min(tokens, CONTEXT)
        pooled = torch.zeros(1, config.pooled_channels)
        prompt, empty = (
            PooledFeatures.of(torch.zeros(1, count, config.text_channels), pooled) for count in (length, 2)
        )
        return GenerationInputs(prompt_embeds=prompt, negative_prompt_embeds=empty)

    def read_features(self, name: str, given: Any) -> PooledFeatures:
        if not isinstance(given, PooledFeatures):
            raise UsageError(
                f"{name}: give PooledFeatures.of(embeddings, pooled); this model reads a pooled vector, too"
            )
        longest = max(given.text.lengths)
        if longest > CONTEXT:
            raise UsageError(f"{name} of {longest} tokens: this model reads at most {CONTEXT}")
        rows, config = given.text.rows(), self.config
        return PooledFeatures.of(
            rows, given.pooled, channels=config.text_channels, pooled_channels=config.pooled_channels
        )
