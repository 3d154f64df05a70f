"""Prompts as conditions of an Infinity model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.infinity.model import TextCondition
from stepvar.models.inputs import VIDEO_ONLY, EncodedInputs, GenerationInputs, InputProcessor, PreparedInputs, texts
from stepvar.text import ContextFeatures, TextEncoder, TextFeatures

Texts = list[str] | TextFeatures


@dataclass(frozen=True)
class TextInputs(PreparedInputs):
    """Prompts, or their features, each generated ``times`` times in a row.

    Attributes:
        encoder: turns prompts into features; None if only features are given.
        prompts: one entry per prompt.
        negatives: one per prompt, or None for the model's learned null text.
        times: images per prompt.
    """

    encoder: TextEncoder | None
    prompts: Texts
    negatives: Texts | None
    times: int

    @property
    def captions(self) -> list[str]:
        known = isinstance(self.prompts, list)
        captions = list(self.prompts) if known else ["(text features)"] * len(self.prompts)  # type: ignore[arg-type]
        return [caption for caption in captions for _ in range(self.times)]

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        return EncodedInputs(self.condition())

    def condition(self) -> TextCondition:
        """The features of prompts and negative prompts, one row per image."""
        negative = None if self.negatives is None else self._features(self.negatives).repeat(self.times)
        return TextCondition(self._features(self.prompts).repeat(self.times), negative)

    def _features(self, given: Texts) -> TextFeatures:
        if isinstance(given, TextFeatures):
            return given
        assert self.encoder is not None  # checked when the inputs were prepared
        return self.encoder.encode(given)


class TextInputProcessor(InputProcessor):
    """Takes prompts, negative prompts, and features of both.

    Args:
        encoder: None if the caller brings features only.
        channels: of the features that the model reads.
    """

    def __init__(self, encoder: TextEncoder | None, channels: int) -> None:
        self.encoder = encoder
        self.channels = channels

    def prepare(self, inputs: GenerationInputs, times: int) -> PreparedInputs:
        inputs.refuse(VIDEO_ONLY, "it to a model that generates videos")
        return self.prepare_text(inputs, times)

    def prepare_text(self, inputs: GenerationInputs, times: int) -> TextInputs:
        """The texts of the inputs, checked."""
        inputs.refuse(["class_labels"], "a prompt")
        prompts = self._one_of("prompt", inputs.prompt, inputs.prompt_embeds)
        if prompts is None:
            raise UsageError("prompt: say what to generate, in words or as prompt_embeds")
        negatives = self._one_of("negative_prompt", inputs.negative_prompt, inputs.negative_prompt_embeds)
        if negatives is not None and len(negatives) != len(prompts):
            if len(negatives) != 1:
                raise UsageError(
                    f"negative_prompt: {len(negatives)} given for {len(prompts)} prompts; give one, or one each"
                )
            negatives = negatives * len(prompts) if isinstance(negatives, list) else negatives.repeat(len(prompts))
        return TextInputs(self.encoder, prompts, negatives, times)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        return GenerationInputs(prompt_embeds=torch.zeros(1, tokens, self.channels))

    def _one_of(
        self, name: str, words: str | Sequence[str] | None, features: Tensor | Sequence[Tensor] | ContextFeatures | None
    ) -> Texts | None:
        if words is not None and features is not None:
            raise UsageError(f"{name} and {name}_embeds: give one of them")
        if isinstance(features, ContextFeatures):
            raise UsageError(f"{name}_embeds: this model reads no padding; give tensors of the tokens alone")
        if features is not None:
            return TextFeatures.from_embeddings(features, channels=self.channels)
        if words is None:
            return None
        if self.encoder is None:
            raise UsageError(f"{name}: the pipeline was made without a text encoder; give {name}_embeds")
        return texts(name, words, empty=name == "negative_prompt")
