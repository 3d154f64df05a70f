"""Videos told clip by clip: each clip of the interactive model goes on from what it remembers of the ones before."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.models.infinity_star.codes import shrink
from stepvar.models.infinity_star.model import Segment
from stepvar.tokens import Grid, ScaleSchedule

SEMANTIC_SCALE = 7
"""The scale to whose rows and columns the remembered clip is averaged down."""

SEMANTIC_PLACE, DETAIL_PLACE = 800, 801
"""Coordinates of what is remembered on the axis of the passes."""


def remembered_segments(former: Tensor, first: Tensor, schedule: ScaleSchedule) -> tuple[Segment, Segment]:
    """What a clip sees of the video before it: all of the last clip, coarsely, and three frames in full.

    Args:
        former: (B, d, t + 1, H, W), the last clip with the frame in front of it.
        first: (B, d, 1, H, W), the first frame of the whole video.
        schedule: that of the new clip.
    """
    clip = former[:, :, 1:]
    length = clip.shape[2]
    coarse = next(grid for index, grid in enumerate(schedule) if schedule.scale(index) == SEMANTIC_SCALE)
    semantic = shrink(clip, Grid(length, coarse.h, coarse.w))
    detail = torch.cat([first, clip[:, :, -2:]], dim=2)
    return (
        Segment(semantic, tuple(range(1, length + 1)), SEMANTIC_PLACE),
        Segment(detail, (0, length - 1, length), DETAIL_PLACE),
    )


def continued(former: Tensor, new: Tensor) -> Tensor:
    """The last clip with the frame in front of it, from that of the last time (B, d, t + 1, H, W) and the new one."""
    return torch.cat([former[:, :, 1:], new], dim=2)[:, :, -former.shape[2] :]
