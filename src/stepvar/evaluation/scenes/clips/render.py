"""Render clips, a batch at a time, on the device: one object that moves, before a background that does not.

A clip depends on what it shows, its seed and its size only. What it leaves unspoken follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.utils.device import to_device_async

from ..grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES
from ..noise import lattice, seed_keys
from ..render import Objects, choose, paint_backgrounds, paint_object
from .grammar import MOTIONS, SPEEDS, Clip

Limits = tuple[tuple[float, float], tuple[float, float]]

# In short sides, lowest and highest: diameters by size, ways that an object goes by speed.
_DIAMETERS: Limits = ((0.24, 0.30), (0.38, 0.44))
_WAYS: Limits = ((0.16, 0.24), (0.40, 0.48))
# By speed: diameter of the larger end of a growing object, over that of the smaller one.
_GROWTHS: Limits = ((1.35, 1.5), (2.0, 2.4))
_MARGIN = 0.03
_MAX_TILT = math.radians(8.0)

_LEFT, _RIGHT, _UP, _DOWN, _GROWING, _SHRINKING = (MOTIONS.index(name) for name in MOTIONS[:6])


def _arrange(
    clips: Sequence[Clip], seeds: Sequence[int], frames: int, height: int, width: int
) -> tuple[Objects, Tensor]:
    """Objects (B, T), which go straight at constant speed and never leave the image, and backgrounds (B,)."""
    if len(clips) != len(seeds) or not clips:
        raise UsageError(f"{len(clips)} clips and {len(seeds)} seeds: give as many, and at least one")
    if min(height, width) < 16 or frames < 1:
        raise UsageError(f"a clip has at least 1 frame of 16 x 16 pixels, not {frames} of {height} x {width}")
    keys, unit = seed_keys(seeds), min(height, width)
    draws = lattice(keys, 6, 1, salt=1)[:, :, 0].to(torch.float64)
    unspoken = lattice(keys, 7, 1, salt=2)[:, :, 0].to(torch.float64)
    shape = choose(SHAPES, [clip.item.shape for clip in clips], unspoken[:, 0])
    colour = choose(COLOURS, [clip.item.colour for clip in clips], unspoken[:, 1])
    texture = choose(TEXTURES, [clip.item.texture or "plain" for clip in clips], unspoken[:, 2])
    size = choose(SIZES, [clip.item.size for clip in clips], unspoken[:, 3])
    background = choose(BACKGROUNDS, [clip.background for clip in clips], unspoken[:, 4])
    motion = choose(MOTIONS, [clip.motion for clip in clips], unspoken[:, 5])
    speed = choose(SPEEDS, [clip.speed for clip in clips], unspoken[:, 6])
    rolling = torch.tensor([clip.rolling for clip in clips]).double()

    def between(limits: Limits, kind: Tensor, chance: Tensor) -> Tensor:
        low, high = torch.tensor(limits, dtype=torch.float64)[kind].unbind(1)
        return torch.lerp(low, high, chance)

    def sign(positive: int, negative: int) -> Tensor:
        return (motion == positive).double() - (motion == negative).double()

    middle = 0.5 * between(_DIAMETERS, size, draws[:, 0])
    way, growth = between(_WAYS, speed, draws[:, 1]), between(_GROWTHS, speed, draws[:, 1])
    # From -1/2 in the first frame to 1/2 in the last: the middle of the clip is the middle of the way.
    moment = torch.linspace(-0.5, 0.5, frames, dtype=torch.float64) if frames > 1 else torch.zeros(1).double()
    along_x, along_y = sign(_RIGHT, _LEFT) * way, sign(_DOWN, _UP) * way
    radius = middle[:, None] * growth[:, None] ** (sign(_GROWING, _SHRINKING)[:, None] * moment)
    largest = radius.amax(1)
    x = _middle_of_way(largest, along_x.abs(), draws[:, 2], width / unit)[:, None] + along_x[:, None] * moment
    y = _middle_of_way(largest, along_y.abs(), draws[:, 3], height / unit)[:, None] + along_y[:, None] * moment
    # A wheel turns by the way over its radius.
    turn = rolling[:, None] * along_x[:, None] * moment / middle[:, None]
    constant = ((draws[:, 4] * 2.0 - 1.0) * _MAX_TILT, shape, colour, texture)
    tilt, shape, colour, texture = (values[:, None].expand_as(x) for values in constant)
    return Objects(x, y, radius, tilt, shape, colour, texture, turn), background


def _middle_of_way(radius: Tensor, way: Tensor, chance: Tensor, length: float) -> Tensor:
    """The middle of a way along a side of ``length``."""
    room = length - 2.0 * radius - way - 2.0 * _MARGIN
    return 0.5 * length + (chance - 0.5) * 0.9 * room


def clip_paths(clips: Sequence[Clip], seeds: Sequence[int], frames: int, height: int, width: int) -> Tensor:
    """Where :func:`render_clips` puts the objects: (B, T, 3) float32 on the CPU, (x, y, radius) in pixels."""
    return _arrange(clips, seeds, frames, height, width)[0].places(height, width)


@torch.no_grad()
def render_clips(
    clips: Sequence[Clip],
    seeds: Sequence[int],
    frames: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Render clips to (B, 3, frames, height, width) float32 in [-1, 1] on ``device``.

    The same clip, seed and size give the same frames on the same device, whatever else is in the batch.

    Raises:
        UsageError: for an empty batch, less than a frame of 16 x 16 pixels, another number of seeds than clips, or
            words outside the grammar.
    """
    objects, background = _arrange(clips, seeds, frames, height, width)
    keys = to_device_async(seed_keys(seeds), torch.device(device))
    scenery = paint_backgrounds(background, keys, height, width).repeat_interleave(frames, dim=0)
    images = paint_object(scenery, objects.flatten(), keys.repeat_interleave(frames), salt=3)
    images.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)
    return images.view(len(clips), frames, 3, height, width).transpose(1, 2)
