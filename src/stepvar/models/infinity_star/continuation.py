"""Videos made clip by clip: each clip of the interactive model goes on from cached features of the ones before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.media.video import Video
from stepvar.models.infinity_star.codes import shrink
from stepvar.models.infinity_star.encode import encode, video_end, video_size
from stepvar.models.infinity_star.model import InfinityStar, Segment, VideoCondition
from stepvar.utils.ambient import stated_formats

SEMANTIC_SCALE = 7
"""The scale to whose rows and columns the last clip is averaged down."""

SEMANTIC_POSITION, DETAIL_POSITION = 800, 801
"""Coordinates of the context segments on the axis of the passes."""


@dataclass(frozen=True)
class Continuation:
    """What the next clip of a video has to know of the clips before.

    Attributes:
        former: (B, d, t + 1, H, W), features of the last clip with the frame before it.
        first: (B, d, 1, H, W), those of the first frame of all.
    """

    former: Tensor
    first: Tensor

    @property
    def aspect_ratio(self) -> float:
        return self.former.shape[4] / self.former.shape[3]

    def condition(self, condition: VideoCondition, schedule: ScaleSchedule) -> VideoCondition:
        """A condition of the next clip: it attends to cached features, and is decoded after the last clip."""
        batch = len(condition.prompts)
        former, first = (part.expand(batch, -1, -1, -1, -1) for part in (self.former, self.first))
        segments = context_segments(former, first, schedule)
        return replace(condition, segments=segments, before=former[:, :, 1:])

    def next(self, latent: Tensor) -> Continuation:
        """What the clip after the next goes on from, given the next one (B, d, t, H, W)."""
        former = self.former.expand(len(latent), -1, -1, -1, -1)
        return Continuation(continued(former, latent), self.first.expand(len(latent), -1, -1, -1, -1))


@stated_formats()
@torch.inference_mode()
def start_continuation(
    model: InfinityStar, video: Video, schedule: ScaleSchedule, generator: Generator
) -> Continuation:
    """What the first clip goes on from, of a video.

    Args:
        video: at least as long as one clip with the frame before it.
        schedule: that of the clips to come, for the size of the frames.
        generator: features are a sample of what the encoder says of the frames.

    Raises:
        UsageError: if the video is too short.
    """
    config = model.config
    last = video_end(video, config.tokenizer.frames(1 + config.clip_frames), config.fps)
    size = video_size(model, schedule)
    first = encode(model, replace(video, frames=video.frames[:1]), size, generator)
    return Continuation(encode(model, last, size, generator), first)


def clip_alone(schedule: ScaleSchedule) -> ScaleSchedule:
    """The second clip of a schedule as one of its own: a still image lies before the first clip only."""
    own = [index for index in range(len(schedule)) if schedule.clip(index) == 1]
    return replace(
        schedule,
        grids=tuple(schedule[index] for index in own),
        clips=(0,) * len(own),
        scales=tuple(schedule.scale(index) for index in own),
    )


def context_segments(former: Tensor, first: Tensor, schedule: ScaleSchedule) -> tuple[Segment, Segment]:
    """What a clip sees of the video before it: all of the last clip, coarsely, and three frames in full.

    Args:
        former: (B, d, t + 1, H, W), the last clip with the frame before it.
        first: (B, d, 1, H, W), the first frame of the whole video.
        schedule: that of the new clip.
    """
    clip = former[:, :, 1:]
    length = clip.shape[2]
    scale = min(SEMANTIC_SCALE, schedule.scale_counts[0] - 1)  # small models have fewer scales
    coarse = next(grid for index, grid in enumerate(schedule) if schedule.scale(index) == scale)
    semantic = shrink(clip, Grid(length, coarse.h, coarse.w))
    detail = torch.cat([first, clip[:, :, -2:]], dim=2)
    return (
        Segment(semantic, tuple(range(1, length + 1)), SEMANTIC_POSITION),
        Segment(detail, (0, length - 1, length), DETAIL_POSITION),
    )


def continued(former: Tensor, new: Tensor) -> Tensor:
    """The last clip with the frame before it, from that of the last time (B, d, t + 1, H, W) and the new one."""
    return torch.cat([former[:, :, 1:], new], dim=2)[:, :, -former.shape[2] :]
