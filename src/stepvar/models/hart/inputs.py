"""Prompts as conditions of a HART model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.models.hart.config import HARTConfig
from stepvar.models.hart.model import guidance_ramp
from stepvar.models.inputs import Subject, texts
from stepvar.text import ContextFeatures, Encoder


@dataclass(frozen=True)
class ContextRequest:
    """Prompts, or their features, each drawn ``times`` times in a row.

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

    def condition(self) -> ContextFeatures:
        if isinstance(self.prompts, ContextFeatures):
            return self.prompts.repeat(self.times)
        assert self.encoder is not None  # checked when the request was made
        return self.encoder.encode(self.prompts).repeat(self.times)


class ContextConditioner:
    """Takes prompts, or features of exactly as many tokens as the model reads.

    Args:
        encoder: None if the caller brings features only.
        config: of the model.
    """

    argument = "prompt"

    def __init__(self, encoder: Encoder[ContextFeatures] | None, config: HARTConfig) -> None:
        self.encoder = encoder
        self.config = config

    def request(self, subject: Subject, times: int) -> ContextRequest:
        subject.refuse(["class_labels"], "a prompt")
        subject.refuse(["negative_prompt", "negative_prompt_embeds"], "guidance_scale: it leads away from no text")
        if subject.prompt is not None and subject.prompt_embeds is not None:
            raise UsageError("prompt and prompt_embeds: give one of them")
        if subject.prompt_embeds is not None:
            return ContextRequest(self.encoder, self._features(subject.prompt_embeds), times)
        if subject.prompt is None:
            raise UsageError("prompt: say what to draw, in words or as prompt_embeds")
        if self.encoder is None:
            raise UsageError("prompt: the pipeline was made without a text encoder; give prompt_embeds")
        return ContextRequest(self.encoder, texts("prompt", subject.prompt), times)

    def example(self) -> Subject:
        return Subject(prompt_embeds=torch.zeros(1, self.config.context_tokens, self.config.context_channels))

    def guidance(self, scale: float, scales: int) -> tuple[float, ...]:
        return guidance_ramp(scale, scales)

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
