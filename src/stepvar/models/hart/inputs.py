"""Prompts as conditions of a HART model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.hart.config import HARTConfig
from stepvar.models.inputs import VIDEO_ONLY, EncodedInputs, GenerationInputs, InputProcessor, PreparedInputs, texts
from stepvar.text import ContextFeatures, Encoder


@dataclass(frozen=True)
class ContextInputs(PreparedInputs):
    """Prompts, or their features, each generated ``times`` times in a row.

    Attributes:
        encoder: turns prompts into features; None if features are given.
        prompts: one entry per prompt.
        times: images per prompt.
    """

    encoder: Encoder[ContextFeatures] | None
    prompts: list[str] | ContextFeatures
    times: int

    @property
    def captions(self) -> list[str]:
        known = self.prompts
        captions = known if isinstance(known, list) else ["(text features)"] * len(known)
        return [caption for caption in captions for _ in range(self.times)]

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        return EncodedInputs(self.condition())

    def condition(self) -> ContextFeatures:
        """The features of the prompts, one row per image."""
        if isinstance(self.prompts, ContextFeatures):
            return self.prompts.repeat(self.times)
        assert self.encoder is not None  # checked when the inputs were prepared
        return self.encoder.encode(self.prompts).repeat(self.times)


class ContextInputProcessor(InputProcessor):
    """Takes prompts, or features of exactly as many tokens as the model reads.

    Args:
        encoder: None if the caller brings features only.
        config: of the model.
    """

    def __init__(self, encoder: Encoder[ContextFeatures] | None, config: HARTConfig) -> None:
        self.encoder = encoder
        self.config = config

    def prepare(self, inputs: GenerationInputs, times: int) -> ContextInputs:
        inputs.refuse(VIDEO_ONLY, "it to a model that generates videos")
        inputs.refuse(["class_labels"], "a prompt")
        inputs.refuse(["negative_prompt", "negative_prompt_embeds"], "guidance_scale: it leads away from no text")
        if inputs.prompt is not None and inputs.prompt_embeds is not None:
            raise UsageError("prompt and prompt_embeds: give one of them")
        if inputs.prompt_embeds is not None:
            return ContextInputs(self.encoder, self._features(inputs.prompt_embeds), times)
        if inputs.prompt is None:
            raise UsageError("prompt: say what to generate, in words or as prompt_embeds")
        if self.encoder is None:
            raise UsageError("prompt: the pipeline was made without a text encoder; give prompt_embeds")
        return ContextInputs(self.encoder, texts("prompt", inputs.prompt), times)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        return GenerationInputs(prompt_embeds=torch.zeros(1, self.config.context_tokens, self.config.context_channels))

    def _features(self, given: object) -> ContextFeatures:
        """Features with mask and places as they are; bare ones (T, C) or (B, T, C) are words all through."""
        if isinstance(given, Tensor):
            given = ContextFeatures.of(given)
        elif isinstance(given, (list, tuple)) and given and all(isinstance(one, Tensor) for one in given):
            given = ContextFeatures.stack([ContextFeatures.of(one) for one in given])
        if not isinstance(given, ContextFeatures):
            raise UsageError("prompt_embeds: give ContextFeatures, a tensor (T, C) or (B, T, C), or a list of (T, C)")
        size = tuple(given.features.shape[1:])
        if size != (self.config.context_tokens, self.config.context_channels):
            raise UsageError(
                f"prompt_embeds of {size[0]} tokens and {size[1]} channels: this model reads exactly "
                f"{self.config.context_tokens} tokens, padding counted, of {self.config.context_channels} channels"
            )
        return given
