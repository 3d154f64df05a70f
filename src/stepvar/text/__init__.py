"""From prompts to text features."""

from __future__ import annotations

from stepvar.text.cached import CachedEncoder
from stepvar.text.clip import CLIPEncoder
from stepvar.text.features import (
    ContextFeatures,
    Encoder,
    PooledFeatures,
    TextEncoder,
    TextFeatures,
    length_mask,
    pad_to_device,
    text_bucket,
)
from stepvar.text.pretrained import LongPromptWarning, OffloadableEncoder, check_source
from stepvar.text.qwen2 import Qwen2Encoder
from stepvar.text.stable_diffusion import StableDiffusionEncoder
from stepvar.text.t5 import T5Encoder
from stepvar.text.words import UnknownWordWarning, WordEncoder, example_prompt

__all__ = [
    "CLIPEncoder",
    "CachedEncoder",
    "ContextFeatures",
    "Encoder",
    "LongPromptWarning",
    "OffloadableEncoder",
    "PooledFeatures",
    "Qwen2Encoder",
    "StableDiffusionEncoder",
    "T5Encoder",
    "TextEncoder",
    "TextFeatures",
    "UnknownWordWarning",
    "WordEncoder",
    "check_source",
    "example_prompt",
    "length_mask",
    "pad_to_device",
    "text_bucket",
]
