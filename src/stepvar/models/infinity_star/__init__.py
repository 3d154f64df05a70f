"""The InfinityStar family: text to video."""

from stepvar.models.infinity_star.config import CONFIGS, InfinityStarConfig
from stepvar.models.infinity_star.model import InfinityStar, VideoCondition
from stepvar.models.infinity_star.schedules import RATIOS, RESOLUTIONS, schedule_for

__all__ = [
    "CONFIGS",
    "RATIOS",
    "RESOLUTIONS",
    "InfinityStar",
    "InfinityStarConfig",
    "VideoCondition",
    "schedule_for",
]
