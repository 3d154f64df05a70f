"""From prompts to text features."""

from __future__ import annotations

from stepvar.text.cached import CachedEncoder
from stepvar.text.context import ContextFeatures
from stepvar.text.features import TextEncoder, TextFeatures
from stepvar.text.t5 import LongPromptWarning, T5Encoder
from stepvar.text.words import UnknownWordWarning, WordEncoder

__all__ = [
    "CachedEncoder",
    "ContextFeatures",
    "LongPromptWarning",
    "T5Encoder",
    "TextEncoder",
    "TextFeatures",
    "UnknownWordWarning",
    "WordEncoder",
]
