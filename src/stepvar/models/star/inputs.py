"""Prompts as conditions of a STAR model."""

from __future__ import annotations

from dataclasses import replace

import torch

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity.inputs import TextInputProcessor, TextInputs
from stepvar.models.inputs import GenerationInputs


class STARInputProcessor(TextInputProcessor):
    """Takes prompts, negative prompts, and features of both.

    Without a negative prompt guidance leads away from the empty one, which is encoded like any other: there is no
    learned null text.
    """

    def prepare_text(self, inputs: GenerationInputs, times: int) -> TextInputs:
        prepared = super().prepare_text(inputs, times)
        if prepared.negatives is None and self.encoder is not None:
            return replace(prepared, negatives=[""] * len(prepared.prompts))
        return prepared

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        empty = torch.zeros(1, 2, self.channels)  # the marks of beginning and end
        return replace(super().example(tokens, schedule), negative_prompt_embeds=empty)
