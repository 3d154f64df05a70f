"""Prompts as conditions of an Infinity model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.infinity.model import TextCondition
from stepvar.models.inputs import (
    VIDEO_ONLY,
    EncodedInputs,
    GenerationInputs,
    PreparedInputs,
    PromptInputProcessor,
    PromptInputs,
)
from stepvar.text import ContextFeatures, TextEncoder, TextFeatures


@dataclass(frozen=True)
class TextInputs(PromptInputs[TextFeatures]):
    """Prompts and their negatives: one per prompt, or None for the model's learned null text."""

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        return EncodedInputs(self.condition())

    def condition(self) -> TextCondition:
        """The features of prompts and negative prompts, one row per image."""
        negative = None if self.negatives is None else self.features(self.negatives)
        return TextCondition(self.features(self.prompts), negative)


class TextInputProcessor(PromptInputProcessor[TextFeatures]):
    """Takes prompts, negative prompts, and features of both.

    Args:
        encoder: None if the caller brings features only.
        channels: of the features that the model reads.
    """

    def __init__(self, encoder: TextEncoder | None, channels: int) -> None:
        super().__init__(encoder)
        self.channels = channels

    def prepare(self, inputs: GenerationInputs, times: int) -> PreparedInputs:
        inputs.refuse(VIDEO_ONLY, "it to a model that generates videos")
        return self.prepare_text(inputs, times)

    def prepare_text(self, inputs: GenerationInputs, times: int) -> TextInputs:
        """The texts of the inputs, checked."""
        inputs.refuse(["class_labels"], "a prompt")
        prompts = self.read_prompts(inputs)
        negatives = self.words_or_features("negative_prompt", inputs.negative_prompt, inputs.negative_prompt_embeds)
        if isinstance(negatives, list) and not any(negative.strip() for negative in negatives):
            negatives = None  # no text: as in the published code, the learned null text
        if negatives is not None:
            negatives = self.one_per_prompt(negatives, len(prompts))
        return TextInputs(self.encoder, prompts, times, negatives)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        return GenerationInputs(prompt_embeds=torch.zeros(1, tokens, self.channels))

    def read_features(self, name: str, given: Any) -> TextFeatures:
        if isinstance(given, ContextFeatures):
            raise UsageError(f"{name}: this model reads no padding; give tensors of the tokens alone")
        return TextFeatures.from_embeddings(given, channels=self.channels)
