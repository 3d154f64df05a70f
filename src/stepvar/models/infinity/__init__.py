"""The Infinity family: bitwise text-to-image models."""

from stepvar.models.infinity.config import CONFIGS, InfinityConfig, TokenizerConfig
from stepvar.models.infinity.model import Infinity, TextCondition
from stepvar.models.infinity.schedules import RATIOS, RESOLUTIONS, schedule_for

__all__ = [
    "CONFIGS",
    "RATIOS",
    "RESOLUTIONS",
    "Infinity",
    "InfinityConfig",
    "TextCondition",
    "TokenizerConfig",
    "schedule_for",
]
