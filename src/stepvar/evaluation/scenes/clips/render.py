"""Render clips, a batch at a time, on the device: one object that moves, before a background that does not.

A clip depends on what it shows, its seed and its size only. What it leaves unspoken is drawn from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.utils.device import to_device_async

from ..grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES
from ..noise import lattice, seed_keys
from ..render import Arrangement, code_of, filled, paint_backgrounds, paint_object
from .grammar import MOTIONS, SPEEDS, Clip

# In short sides, lowest and highest: diameters by size, ways that an object goes by speed.
_DIAMETERS = ((0.24, 0.30), (0.38, 0.44))
_WAYS = ((0.16, 0.24), (0.40, 0.48))
# By speed: diameter of the larger end of a growing object, over that of the smaller one.
_GROWTHS = ((1.35, 1.5), (2.0, 2.4))
_MARGIN = 0.03
_MAX_TILT = math.radians(8.0)

_LEFT, _RIGHT, _UP, _DOWN, _GROWING, _SHRINKING = (MOTIONS.index(name) for name in MOTIONS[:6])


@dataclass(frozen=True)
class Paths:
    """Where the objects of a batch go, on the CPU in float64: (B, T) each, in short sides; ``turn`` in radians."""

    x: Tensor
    y: Tensor
    radius: Tensor
    turn: Tensor


@dataclass(frozen=True)
class _Kinds:
    """What a batch shows, with the unspoken drawn: int64 (B,) each, on the CPU."""

    shape: Tensor
    colour: Tensor
    texture: Tensor
    size: Tensor
    background: Tensor
    motion: Tensor
    speed: Tensor
    rolling: Tensor


def _kinds(clips: Sequence[Clip], keys: Tensor) -> _Kinds:
    rows = [
        (
            code_of(SHAPES, clip.item.shape),
            code_of(COLOURS, clip.item.colour),
            code_of(TEXTURES, clip.item.texture or "plain"),
            code_of(SIZES, clip.item.size),
            code_of(BACKGROUNDS, clip.background),
            code_of(MOTIONS, clip.motion),
            code_of(SPEEDS, clip.speed),
        )
        for clip in clips
    ]
    draws = lattice(keys, 7, 1, salt=2)[:, :, 0].to(torch.float64)
    groups = (SHAPES, COLOURS, TEXTURES, SIZES, BACKGROUNDS, MOTIONS, SPEEDS)
    codes = torch.tensor(rows, dtype=torch.int64)
    kinds = [filled(codes[:, i], draws[:, i], len(words)) for i, words in enumerate(groups)]
    kinds.append(torch.tensor([clip.rolling for clip in clips]))
    return _Kinds(*kinds)


def _paths(kinds: _Kinds, draws: Tensor, frames: int, wide: float, tall: float) -> Paths:
    """Straight ways at constant speed that never leave the picture; ``draws`` (B, 6) uniform in [0, 1)."""
    limits = torch.tensor(_DIAMETERS, dtype=torch.float64)[kinds.size]
    middle = 0.5 * torch.lerp(limits[:, 0], limits[:, 1], draws[:, 0])
    limits = torch.tensor(_WAYS, dtype=torch.float64)[kinds.speed]
    way = torch.lerp(limits[:, 0], limits[:, 1], draws[:, 1])
    limits = torch.tensor(_GROWTHS, dtype=torch.float64)[kinds.speed]
    growth = torch.lerp(limits[:, 0], limits[:, 1], draws[:, 1])
    # From -1/2 in the first frame to 1/2 in the last: the middle of the clip is the middle of the way.
    moment = torch.linspace(-0.5, 0.5, frames, dtype=torch.float64) if frames > 1 else torch.zeros(1).double()
    sign_x = (kinds.motion == _RIGHT).double() - (kinds.motion == _LEFT).double()
    sign_y = (kinds.motion == _DOWN).double() - (kinds.motion == _UP).double()
    swelling = (kinds.motion == _GROWING).double() - (kinds.motion == _SHRINKING).double()
    radius = middle[:, None] * growth[:, None] ** (swelling[:, None] * moment)
    largest = radius.amax(1)
    along_x, along_y = (sign * way for sign in (sign_x, sign_y))
    x = _between(largest, along_x.abs(), draws[:, 2], wide)[:, None] + along_x[:, None] * moment
    y = _between(largest, along_y.abs(), draws[:, 3], tall)[:, None] + along_y[:, None] * moment
    # A wheel turns by the way over its radius.
    turn = kinds.rolling.double()[:, None] * along_x[:, None] * moment / middle[:, None]
    return Paths(x, y, radius, turn)


def _between(radius: Tensor, way: Tensor, draw: Tensor, length: float) -> Tensor:
    """The middle of a way along a side of ``length``."""
    room = length - 2.0 * radius - way - 2.0 * _MARGIN
    return 0.5 * length + (draw - 0.5) * 0.9 * room


def _planned(
    clips: Sequence[Clip], seeds: Sequence[int], frames: int, height: int, width: int
) -> tuple[Tensor, _Kinds, Paths, Tensor]:
    if len(clips) != len(seeds) or not clips:
        raise UsageError(f"{len(clips)} clips and {len(seeds)} seeds: give as many, and at least one")
    if min(height, width) < 16 or frames < 1:
        raise UsageError(f"a clip has at least 1 frame of 16 x 16 pixels, not {frames} of {height} x {width}")
    keys = seed_keys(seeds)
    kinds = _kinds(clips, keys)
    draws = lattice(keys, 6, 1, salt=1)[:, :, 0].to(torch.float64)
    unit = min(height, width)
    return keys, kinds, _paths(kinds, draws, frames, width / unit, height / unit), (draws[:, 4] * 2.0 - 1.0) * _MAX_TILT


def clip_paths(clips: Sequence[Clip], seeds: Sequence[int], frames: int, height: int, width: int) -> Tensor:
    """Where :func:`render_clips` puts the objects: (B, T, 3) float32 on the CPU, (x, y, radius) in pixels."""
    _, _, paths, _ = _planned(clips, seeds, frames, height, width)
    return (torch.stack((paths.x, paths.y, paths.radius), dim=-1) * float(min(height, width))).to(torch.float32)


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
    host_keys, kinds, paths, tilt = _planned(clips, seeds, frames, height, width)
    keys = to_device_async(host_keys, torch.device(device))

    def of_frames(values: Tensor) -> Tensor:
        """(B,) or (B, T) -> (B T, 1): every frame is a picture with one object."""
        return (values if values.ndim == 2 else values[:, None].expand(-1, frames)).reshape(-1, 1)

    arrangement = Arrangement(
        x=of_frames(paths.x),
        y=of_frames(paths.y),
        radius=of_frames(paths.radius),
        tilt=of_frames(tilt),
        shape=of_frames(kinds.shape),
        colour=of_frames(kinds.colour),
        texture=of_frames(kinds.texture),
        two=torch.zeros(len(clips) * frames, dtype=torch.bool),
        background=of_frames(kinds.background)[:, 0],
        turn=of_frames(paths.turn),
    )
    background = paint_backgrounds(kinds.background, keys, height, width)
    pictures = background.repeat_interleave(frames, dim=0)
    paint_object(pictures, arrangement, keys.repeat_interleave(frames), 0)
    pictures.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)
    return pictures.view(len(clips), frames, 3, height, width).transpose(1, 2)
