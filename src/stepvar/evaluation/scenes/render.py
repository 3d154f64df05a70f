"""Render scenes to pictures, a batch at a time, on the device.

A picture depends on its scene, its seed and its size only. What a scene leaves unspoken (a size, a
colour, the relation, the background) is drawn from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.utils.device import to_device_async

from .backgrounds import PAINTERS, Canvas
from .grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene
from .noise import lattice, seed_keys, smoothstep
from .shapes import DISTANCES, MASKS

Rgb = tuple[float, float, float]

PALETTE: dict[str, tuple[Rgb, Rgb, Rgb]] = {
    "red": ((0.87, 0.11, 0.12), (0.44, 0.02, 0.05), (0.38, 0.03, 0.04)),
    "orange": ((0.98, 0.53, 0.07), (0.62, 0.25, 0.01), (0.50, 0.22, 0.02)),
    "yellow": ((0.99, 0.88, 0.14), (0.66, 0.51, 0.02), (0.52, 0.42, 0.04)),
    "green": ((0.08, 0.58, 0.20), (0.62, 0.90, 0.60), (0.02, 0.24, 0.08)),
    "blue": ((0.11, 0.28, 0.88), (0.60, 0.76, 1.00), (0.03, 0.09, 0.38)),
    "purple": ((0.50, 0.16, 0.70), (0.82, 0.66, 0.96), (0.20, 0.05, 0.30)),
    "pink": ((0.99, 0.58, 0.76), (0.78, 0.20, 0.45), (0.55, 0.18, 0.34)),
    "white": ((0.97, 0.97, 0.97), (0.56, 0.56, 0.58), (0.38, 0.38, 0.42)),
    "black": ((0.07, 0.07, 0.08), (0.50, 0.50, 0.52), (0.42, 0.42, 0.45)),
}
"""Of each colour word: the body, the second tint of a texture, and the outline; RGB in [0, 1]."""

# Diameters in short sides: lowest, highest.
_DIAMETERS = {1: ((0.20, 0.26), (0.42, 0.50)), 2: ((0.18, 0.22), (0.36, 0.42))}
_MAX_TILT = math.radians(8.0)
_GAP = 0.06
_MARGIN = 0.03
_DRAWS = 16


@dataclass(frozen=True)
class Placement:
    """Where one object is: centre and radius in pixels (y downwards), tilt in radians."""

    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Arrangement:
    """A batch in arrays, on the CPU: float64 (B, 2) places in short sides, int64 (B, 2) kinds.

    ``turn`` (B, 2), in radians and clockwise, turns an object's shape and texture but not the light on it; None: 0.
    """

    x: Tensor
    y: Tensor
    radius: Tensor
    tilt: Tensor
    shape: Tensor
    colour: Tensor
    texture: Tensor
    two: Tensor
    background: Tensor
    turn: Tensor | None = None


def code_of(words: tuple[str, ...], word: str | None) -> int:
    if word is not None and word not in words:
        raise UsageError(f"{word!r} is not one of {', '.join(words)}")
    return -1 if word is None else words.index(word)


def filled(codes: Tensor, draw: Tensor, kinds: int) -> Tensor:
    return torch.where(codes < 0, (draw * kinds).long(), codes)


def _codes(scenes: Sequence[Scene]) -> Tensor:
    table = []
    for scene in scenes:
        if len(scene.objects) not in (1, 2):
            raise UsageError(f"a scene has 1 or 2 objects, not {len(scene.objects)}")
        row = [len(scene.objects), code_of(RELATIONS, scene.relation), code_of(BACKGROUNDS, scene.background)]
        for item in (scene.objects[0], scene.objects[-1]):
            row += [code_of(SHAPES, item.shape), code_of(COLOURS, item.colour)]
            row += [code_of(TEXTURES, item.texture or "plain"), code_of(SIZES, item.size)]
        table.append(row)
    return torch.tensor(table, dtype=torch.int64)


def _plan(scenes: Sequence[Scene], keys: Tensor, height: int, width: int) -> Arrangement:
    codes = _codes(scenes)
    draws = lattice(keys, _DRAWS, 1, salt=1)[:, :, 0].to(torch.float64)
    unspoken = lattice(keys, 8, 1, salt=2)[:, :, 0].to(torch.float64)
    two = codes[:, 0] == 2
    relation = filled(codes[:, 1], unspoken[:, 0], len(RELATIONS))
    background = filled(codes[:, 2], unspoken[:, 1], len(BACKGROUNDS))
    kinds = codes[:, 3:].view(-1, 2, 4)
    size = filled(kinds[:, :, 3], unspoken[:, 2:4], len(SIZES))
    colour = filled(kinds[:, :, 1], unspoken[:, 4:6], len(COLOURS))
    shape = filled(kinds[:, :, 0], unspoken[:, 6:8], len(SHAPES))
    limits = torch.tensor([_DIAMETERS[1], _DIAMETERS[2]], dtype=torch.float64)[two.long()[:, None], size]
    radius = 0.5 * torch.lerp(limits[..., 0], limits[..., 1], draws[:, 0:2])
    tilt = (draws[:, 2:4] * 2.0 - 1.0) * _MAX_TILT
    unit = min(height, width)
    x, y = _places(two, relation, radius, draws[:, 4:], width / unit, height / unit)
    return Arrangement(x, y, radius, tilt, shape, colour, kinds[:, :, 2], two, background)


def _places(
    two: Tensor, relation: Tensor, radius: Tensor, draws: Tensor, wide: float, tall: float
) -> tuple[Tensor, Tensor]:
    """Centres (B, 2) along x and y, in short sides, of one or two objects within ``wide`` x ``tall``."""
    single_x = _jittered(radius[:, 0], draws[:, 0], wide)
    single_y = _jittered(radius[:, 0], draws[:, 1], tall)
    horizontal = relation < 2
    along = torch.where(horizontal, wide, tall)
    across = torch.where(horizontal, tall, wide)
    # "left of" and "above" put the first object first along the axis.
    first = torch.where(relation % 2 == 0, 0, 1)[:, None]
    near, far = radius.gather(1, first)[:, 0], radius.gather(1, 1 - first)[:, 0]
    free = along - 2.0 * (near + far) - _GAP - 2.0 * _MARGIN
    cut = torch.sort(draws[:, 2:4] * 0.8 + 0.1, dim=1).values
    # Two cuts part the free length; the middle piece, between the objects, gets at most 0.3.
    middle = torch.clamp((cut[:, 1] - cut[:, 0]) * free, max=0.3)
    start = _MARGIN + cut[:, 0] * (free - middle)
    near_at = start + near
    far_at = near_at + near + _GAP + middle + far
    shift = (draws[:, 4] - 0.5) * 0.8 * (across - 2.0 * radius.amax(1) - 2.0 * _MARGIN).clamp(max=0.7)
    spread = torch.clamp(0.2 * (far_at - near_at), max=0.08)[:, None]
    side = 0.5 * across[:, None] + shift[:, None] * 0.8 + (draws[:, 5:7] * 2.0 - 1.0) * spread
    room = radius + 0.5 * _MARGIN
    side = torch.maximum(torch.minimum(side, across[:, None] - room), room)
    axis = torch.where(first == 0, torch.stack((near_at, far_at), 1), torch.stack((far_at, near_at), 1))
    x = torch.where(horizontal[:, None], axis, side)
    y = torch.where(horizontal[:, None], side, axis)
    pair = two[:, None]
    return torch.where(pair, x, single_x[:, None]), torch.where(pair, y, single_y[:, None])


def _jittered(radius: Tensor, draw: Tensor, length: float) -> Tensor:
    room = length - 2.0 * radius - 2.0 * _MARGIN
    return 0.5 * length + (draw - 0.5) * 0.8 * room


def layout(scene: Scene, seed: int, height: int, width: int) -> tuple[Placement, ...]:
    """Where :func:`render` puts the objects of a scene, in the scene's order, in pixels."""
    plan = _plan([scene], seed_keys([seed]), height, width)
    unit = float(min(height, width))
    fields = (plan.x[0] * unit, plan.y[0] * unit, plan.radius[0] * unit, plan.tilt[0])
    return tuple(Placement(*(float(field[i]) for field in fields)) for i in range(len(scene.objects)))


def layouts(scenes: Sequence[Scene], seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Centres and radii in pixels, (B, 2, 3) float32 on the CPU: (x, y, radius) of both objects.

    For a scene of one object both rows are that object.
    """
    plan = _plan(scenes, seed_keys(seeds), height, width)
    places = torch.stack((plan.x, plan.y, plan.radius), dim=-1) * float(min(height, width))
    return torch.where(plan.two[:, None, None], places, places[:, :1]).to(torch.float32)


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Render scenes to (B, 3, height, width) float32 in [-1, 1] on ``device``.

    The same scene, seed and size give the same picture on the same device, whatever else is in the
    batch. Raises ``UsageError`` for an empty batch, a size below 16 pixels, another number of seeds than
    scenes, or words outside the grammar.
    """
    if len(scenes) != len(seeds) or not scenes:
        raise UsageError(f"{len(scenes)} scenes and {len(seeds)} seeds: give as many, and at least one")
    if min(height, width) < 16:
        raise UsageError(f"a picture has at least 16 x 16 pixels, not {height} x {width}")
    target = torch.device(device)
    host_keys = seed_keys(seeds)
    plan = _plan(scenes, host_keys, height, width)
    keys = to_device_async(host_keys, target)
    picture = paint_backgrounds(plan.background, keys, height, width)
    paint_object(picture, plan, keys, 0)
    if bool(plan.two.any()):
        paint_object(picture, plan, keys, 1, plan.two.nonzero()[:, 0])
    return picture.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)


def paint_backgrounds(kinds: Tensor, keys: Tensor, height: int, width: int) -> Tensor:
    """Pictures (B, 3, H, W) of the backgrounds ``kinds`` (B,), which is on the CPU; on the device of ``keys``."""
    picture = torch.empty(len(kinds), 3, height, width, device=keys.device)
    for kind, name in enumerate(BACKGROUNDS):
        chosen = _where(kinds == kind, keys.device)
        if chosen is not None:
            picture[chosen] = PAINTERS[name](Canvas(keys[chosen], height, width))
    return picture


def _where(mask: Tensor, device: torch.device) -> Tensor | None:
    # The mask is on the CPU, so that no device has to be waited for.
    index = mask.nonzero()[:, 0]
    return to_device_async(index, device) if len(index) else None


class _Brush:
    """Local coordinates of one object of each picture, and selections by kind."""

    def __init__(self, plan: Arrangement, slot: int, rows: Tensor | None, size: tuple[int, int], device: torch.device):
        keep = slice(None) if rows is None else rows
        unit = min(size)
        self.place = self._send(plan, plan.tilt if plan.turn is None else plan.tilt + plan.turn, keep, slot, device)
        self.upright = self.place if plan.turn is None else self._send(plan, plan.tilt, keep, slot, device)
        self.shape, self.texture = plan.shape[keep, slot], plan.texture[keep, slot]
        self.colour = plan.colour[keep, slot]
        self.size, self.device = size, device
        self.y = ((torch.arange(size[0], device=device, dtype=torch.float32) + 0.5) / unit)[:, None]
        self.x = ((torch.arange(size[1], device=device, dtype=torch.float32) + 0.5) / unit)[None, :]
        self.pixels = self.place[2] * unit

    @staticmethod
    def _send(plan: Arrangement, angle: Tensor, keep: slice | Tensor, slot: int, device: torch.device) -> Tensor:
        values = torch.stack((plan.x, plan.y, plan.radius, torch.cos(angle), torch.sin(angle)))
        return to_device_async(values[:, keep, slot].to(torch.float32), device)[:, :, None, None]

    def local(self, rows: Tensor | None = None, drop: float = 0.0, turned: bool = True) -> tuple[Tensor, Tensor]:
        """``u`` right and ``v`` up (B, H, W) in radii, of an object moved down right by ``drop`` radii."""
        place = self.place if turned else self.upright
        x, y, radius, cos, sin = place if rows is None else place[:, rows]
        u = (self.x - x) / radius - 0.7 * drop
        v = (y - self.y) / radius + drop
        return u * cos - v * sin, u * sin + v * cos

    def distance(self, drop: float = 0.0) -> Tensor:
        """Signed distance (B, H, W) in radii."""
        out = torch.empty(len(self.shape), *self.size, device=self.device)
        for kind, name in enumerate(SHAPES):
            rows = _where(self.shape == kind, self.device)
            if rows is not None:
                out[rows] = DISTANCES[name](*self.local(rows, drop))
        return out

    def tint(self) -> Tensor:
        """How much of the texture's second tint there is, (B, H, W) in [0, 1]."""
        out = torch.zeros(len(self.shape), *self.size, device=self.device)
        for kind, name in enumerate(TEXTURES):
            rows = _where(self.texture == kind, self.device) if name in MASKS else None
            if rows is not None:
                out[rows] = (MASKS[name](*self.local(rows)) * self.pixels[rows] + 0.5).clamp_(0.0, 1.0)
        return out

    def colours(self) -> Tensor:
        """Body, tint and outline (3, B, 3, 1, 1)."""
        table = torch.tensor([PALETTE[name] for name in COLOURS], dtype=torch.float32)
        return to_device_async(table[self.colour].transpose(0, 1), self.device)[..., None, None]


def _square(u: Tensor, v: Tensor) -> Tensor:
    return u * u + v * v


def paint_object(picture: Tensor, plan: Arrangement, keys: Tensor, slot: int, host_rows: Tensor | None = None) -> None:
    """Paint one object of each picture (of ``host_rows``) in place: shadow, body, texture, outline."""
    size = (picture.shape[2], picture.shape[3])
    brush = _Brush(plan, slot, host_rows, size, picture.device)
    rows = None if host_rows is None else to_device_async(host_rows, picture.device)
    below = picture if rows is None else picture[rows]
    chosen = keys if rows is None else keys[rows]
    shadow = 1.0 - smoothstep(-0.16, 0.24, brush.distance(drop=0.13))
    below = below * shadow.mul_(-0.42).add_(1.0)[:, None]
    edge = brush.distance() * brush.pixels
    body, tint, rim = brush.colours()
    jitter = 0.05 * (lattice(chosen, 3, 1, salt=3 + slot)[..., None] - 0.5)
    colour = torch.lerp(body + jitter, tint + jitter, brush.tint()[:, None])
    u, v = brush.local(turned=False)
    # Light from the upper left, and a slight darkening towards the outline.
    light = (v - 0.6 * u).clamp_(-1.3, 1.3) * 0.075 + 1.0
    colour = colour * light[:, None] + 0.05 * torch.exp(_square(u + 0.35, v - 0.4) * -4.0)[:, None]
    width = (0.065 * brush.pixels).clamp(min=1.2)
    colour = torch.lerp(colour, rim, (edge + width + 0.5).clamp(0.0, 1.0)[:, None])
    result = torch.lerp(below, colour, (0.5 - edge).clamp(0.0, 1.0)[:, None])
    if rows is None:
        picture.copy_(result)
    else:
        picture[rows] = result
