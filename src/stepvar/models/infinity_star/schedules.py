"""The published scale schedules of the InfinityStar family: an image pyramid, and after it clip after clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.infinity_star.codes import CodePass
from stepvar.models.infinity_star.config import InfinityStarConfig, Sides

RESOLUTIONS: dict[str, int] = {"0.06M": 11, "0.25M": 13, "0.40M": 14, "0.90M": 15}
"""Number of scales by resolution name: each schedule is a prefix of the largest of its aspect ratio."""

_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 40, 60)
_RATIOS = (1.0, 100 / 116, 3 / 4, 2 / 3, 9 / 16, 1 / 2, 2 / 5, 1 / 3)


def _published(ratio: float) -> Sides:
    """Scales of about ``side * side`` cells; rounding is half to even."""
    widths = (math.sqrt(side * side / ratio) for side in _SIDES)
    return tuple((round(width * ratio), round(width)) for width in widths)


def _key(sides: Sides) -> float:
    h, w = sides[-1]
    return math.floor(1000 * h / w) / 1000


def _all_ratios() -> dict[float, Sides]:
    wide = [_published(ratio) for ratio in _RATIOS]
    tall = [tuple((w, h) for h, w in sides) for sides in wide[1:]]
    return {_key(sides): sides for sides in (*wide, *tall)}


RATIOS = _all_ratios()
"""Height over width -> the 15 (h, w) grids of the 0.90M schedule."""


def clip_schedule(
    clips: Sequence[Sequence[tuple[Grid, int]]], name: str = "", ratio: float | None = None, asked: float | None = None
) -> ScaleSchedule:
    """A schedule of clips, each of scales with the number of times that they run.

    A pass attends to what the last pass of the clip before left, never to the earlier scales of its own clip.
    Positions are in the coordinates of the last grid.
    """
    passes = [
        (grid, clip, scale)
        for clip, scales in enumerate(clips)
        for scale, (grid, times) in enumerate(scales)
        for _ in range(times)
    ]
    grids, numbers, scales = zip(*passes, strict=True)
    frame = Grid(1, grids[-1].h, grids[-1].w)
    return ScaleSchedule(grids, name, frame, ratio, asked, numbers, scales, kv_scope="clip")


def schedule_for(
    config: InfinityStarConfig, height_over_width: float, latents: int, resolution: str | None = None
) -> ScaleSchedule:
    """The schedule of the image shape that is nearest to the one asked for; the first of equally near ones.

    Args:
        latents: latent frames: 1 for a still image, or one of the config's.
        resolution: name of a schedule; None: the config's own.

    Raises:
        UsageError: for an unknown resolution, one with more scales than the model knows, a ratio that is not a
            positive number, or a length that the model cannot generate.
    """
    resolution = config.resolution if resolution is None else resolution
    ratio, sides = _sides(config, height_over_width, resolution)
    if latents not in (1, *config.latents):
        raise _wrong_length(config, seconds_of(config, latents))
    lengths = [1, *_clip_lengths(config, latents)]
    repetitions = [config.image_repetitions] + [config.video_repetitions] * (len(lengths) - 1)
    for times in repetitions:
        if len(times) < len(sides):
            raise UsageError(
                f"resolution {resolution!r}: has {len(sides)} scales, and this model knows {len(times)}; "
                f"choose {config.resolution} or less"
            )
    clips = [
        [(Grid(length, h, w), count) for (h, w), count in zip(sides, times, strict=False)]
        for length, times in zip(lengths, repetitions, strict=True)
    ]
    return clip_schedule(clips, f"{resolution} {ratio:g} x{latents}", ratio, height_over_width)


def _sides(config: InfinityStarConfig, height_over_width: float, resolution: str) -> tuple[float, Sides]:
    """The image shape nearest to a ratio, and its scales."""
    if not 0 < height_over_width < float("inf"):
        raise UsageError(f"aspect ratio (height / width) {height_over_width}: must be a positive number")
    known = shapes(config)
    if resolution not in known:
        raise UsageError(f"resolution {resolution!r}: choose one of {', '.join(known)}")
    ratios = known[resolution]
    ratio = min(ratios, key=lambda one: abs(one - height_over_width))
    return ratio, ratios[ratio]


def shapes(config: InfinityStarConfig) -> dict[str, dict[float, Sides]]:
    """The scales of each height over width, by resolution."""
    if config.shapes:
        return {config.resolution: {_key(sides): sides for sides in config.shapes}}
    return {name: {ratio: sides[:scales] for ratio, sides in RATIOS.items()} for name, scales in RESOLUTIONS.items()}


def seconds_of(config: InfinityStarConfig, latents: int) -> float:
    """Length of a video of so many latent frames, without its first frame."""
    return (latents - 1) * config.tokenizer.frame_stride / config.fps


def latents_of(config: InfinityStarConfig, seconds: float) -> int:
    """Latent frames of a video of a length in seconds; 0 stands for a still image.

    Raises:
        UsageError: for a length that the model cannot draw.
    """
    known = {seconds_of(config, latents): latents for latents in (1, *config.latents)}
    if seconds not in known:
        raise _wrong_length(config, seconds)
    return known[seconds]


def _wrong_length(config: InfinityStarConfig, seconds: float) -> UsageError:
    lengths = ", ".join(f"{seconds_of(config, known):g}" for known in config.latents)
    return UsageError(f"seconds={seconds:g}: this model draws {lengths} seconds, or 0 for a still image")


def _clip_lengths(config: InfinityStarConfig, latents: int) -> list[int]:
    """Latent frames of each clip after the first frame."""
    whole, left = divmod(latents - 1, config.clip_frames)
    return [config.clip_frames] * whole + [left] * bool(left)


def code_passes(config: InfinityStarConfig, schedule: ScaleSchedule) -> list[list[CodePass]]:
    """For each clip its passes as the tokenizer's quantiser takes them: grids, and bits per cell."""
    clips: list[list[CodePass]] = [[] for _ in schedule.scale_counts]
    for index, grid in enumerate(schedule):
        clips[schedule.clip(index)].append((grid, config.bits_at(schedule.scale(index))))
    return clips
