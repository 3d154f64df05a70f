"""Forced codes: the bits of the passes that an image or a video gives, encoded instead of sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.media.images import as_picture
from stepvar.media.video import Video
from stepvar.models.infinity_star.codes import quantise
from stepvar.models.infinity_star.model import InfinityStar
from stepvar.models.infinity_star.schedules import code_passes
from stepvar.utils.ambient import stated_formats


@stated_formats()
@torch.inference_mode()
def forced_bits(
    model: InfinityStar, videos: Sequence[Video], schedule: ScaleSchedule, generators: Sequence[Generator]
) -> Mapping[int, Tensor]:
    """The bits (B, N, bits) of all passes of the clips that the videos cover, by pass.

    Args:
        videos: one per sample, all equally long.
        generators: one per sample, on the CPU: features are sampled from the distribution of the encoder.
    """
    size = video_size(model, schedule)
    features = torch.cat(
        [encode(model, video, size, generator) for video, generator in zip(videos, generators, strict=True)]
    )
    bits, _ = quantise(features, code_passes(model.config, schedule)[: covered_clips(schedule, features.shape[2])])
    return {index: bit.flatten(2).transpose(1, 2).long() for index, bit in enumerate(bits)}


def covered_clips(schedule: ScaleSchedule, latents: int) -> int:
    """How many clips of a schedule, from the first, a number of latent frames covers."""
    clips = schedule.clip_slices
    return sum(clip.stop <= latents for clip in clips)


def forced_passes(schedule: ScaleSchedule, latents: int) -> frozenset[int]:
    """The passes of the clips that a number of latent frames covers."""
    covered = covered_clips(schedule, latents)
    return frozenset(index for index in range(len(schedule)) if schedule.clip(index) < covered)


def video_size(model: InfinityStar, schedule: ScaleSchedule) -> tuple[int, int]:
    """Width and height in pixels of the frames of a schedule."""
    return (schedule[-1].w * model.config.stride, schedule[-1].h * model.config.stride)


def encode(model: InfinityStar, video: Video, size: tuple[int, int], generator: Generator | None = None) -> Tensor:
    """Features (1, d, T, h, w) of a video whose frames are cut to a width and height."""
    pixels = fitted(video, size).tensor(model.device).unsqueeze(0)
    with model.on_device("encoder"):
        return model.tokenizer.encode(pixels, generator=generator)


def fitted(video: Video, size: tuple[int, int]) -> Video:
    """Frames resized (Lanczos) to cover a width and height, and cut around their centre."""
    if video.size == size:
        return video
    factor = max(size[0] / video.size[0], size[1] / video.size[1])
    width, height = (max(target, round(side * factor)) for side, target in zip(video.size, size, strict=True))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    box = (left, top, left + size[0], top + size[1])
    images = [image.resize((width, height), Image.Resampling.LANCZOS).crop(box) for image in video.images()]
    return Video.of_images(images, video.fps)


def as_images(given: Any) -> list[Video]:
    """Images as videos of one frame: a PIL image, the path of one, an array (H, W, 3) uint8, or a list of these.

    Raises:
        UsageError: for anything else.
    """
    return [
        Video(np.asarray(as_picture(one))[None]) for one in (given if isinstance(given, (list, tuple)) else [given])
    ]


def as_videos(given: Any, fps: float) -> list[Video]:
    """Videos: a :class:`Video`, the path of one, an array (F, H, W, 3) uint8, images in order, or a list of videos.

    Files and videos are brought to a frame rate; arrays and images, which have none, are taken as they are.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(given, (list, tuple)) and not (given and isinstance(given[0], Image.Image)):
        return [_video(one, fps) for one in given]
    return [_video(given, fps)]


def _video(given: Any, fps: float) -> Video:
    if isinstance(given, Video):
        return given.at_rate(fps)
    if isinstance(given, (str, Path)):
        return Video.read(given, fps)
    if isinstance(given, np.ndarray):
        return Video(given, fps)
    if isinstance(given, (list, tuple)):
        return Video.of_images(given, fps)
    raise UsageError(
        f"video: a {type(given).__name__}; give a Video, a path, an array (F, H, W, 3) of uint8, or pictures"
    )


def video_end(video: Video, frames: int, fps: float) -> Video:
    """The last frames of a video.

    Raises:
        UsageError: if it has fewer.
    """
    if len(video) < frames:
        raise UsageError(
            f"video: has {len(video)} frames at {fps:g} per second, and {frames} are needed; give a longer one"
        )
    return replace(video, frames=video.frames[-frames:])
