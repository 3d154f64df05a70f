"""Videos for tests, and how far two are apart."""

from __future__ import annotations

import numpy as np

from stepvar.media.video import Video


def make_video(frames: int = 9, height: int = 48, width: int = 64, fps: float = 16) -> Video:
    """A coloured slope over which a bright square moves right, two pixels per frame."""
    y, x = np.mgrid[:height, :width]
    slope = np.stack([60 + 100 * x / width, 60 + 100 * y / height, np.full_like(x, 90)], axis=-1)
    pixels = np.repeat(slope[None], frames, axis=0)
    for index in range(frames):
        pixels[index, 10:26, 4 + 2 * index : 20 + 2 * index] = (230, 200, 40)
    return Video(pixels.round().astype(np.uint8), fps)


def error(ours: Video, theirs: Video) -> float:
    """Root of the mean squared difference, in levels."""
    return float(np.sqrt(np.mean((ours.frames.astype(float) - theirs.frames.astype(float)) ** 2)))
