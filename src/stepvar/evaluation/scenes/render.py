"""Render scenes to images, a batch at a time, on the device.

An image depends on its scene, its seed and its size only. What a scene leaves unspoken (a size, a
colour, the relation, the background) follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

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

# Diameters in short sides, of one object and of two, by size: lowest, highest.
_DIAMETERS = (((0.20, 0.26), (0.42, 0.50)), ((0.18, 0.22), (0.36, 0.42)))
_MAX_TILT = math.radians(8.0)
_GAP = 0.06
_MARGIN = 0.03


@dataclass(frozen=True)
class Objects:
    """Objects of a batch, on the CPU, in fields of one shape.

    Attributes:
        x, y, radius: float64, in short sides, y downwards.
        tilt: float64, in radians.
        shape, colour, texture: int64, places in the lists of words.
        turn: float64, in radians and clockwise, turns the shape and the texture but not the light on them.
    """

    x: Tensor
    y: Tensor
    radius: Tensor
    tilt: Tensor
    shape: Tensor
    colour: Tensor
    texture: Tensor
    turn: Tensor

    def at(self, *index: slice | int | Tensor) -> Objects:
        """Some of them."""
        return Objects(*(getattr(self, field.name)[index] for field in fields(self)))

    def flatten(self) -> Objects:
        """All of them in one dimension."""
        return Objects(*(getattr(self, field.name).flatten() for field in fields(self)))

    def places(self, height: int, width: int) -> Tensor:
        """(x, y, radius) in pixels along a new last axis, float32."""
        places = torch.stack((self.x, self.y, self.radius), dim=-1) * float(min(height, width))
        return places.to(torch.float32)


def choose(words: tuple[str, ...], spoken: Iterable[str | None], chance: Tensor) -> Tensor:
    """Places of words in a list, int64 (B,); those of unspoken words follow from numbers (B,) in [0, 1).

    Raises ``UsageError`` for a word that is not in the list.
    """
    codes = []
    for word in spoken:
        if word is not None and word not in words:
            raise UsageError(f"{word!r} is not one of {', '.join(words)}")
        codes.append(-1 if word is None else words.index(word))
    given = torch.tensor(codes, dtype=torch.int64)
    return torch.where(given < 0, (chance * len(words)).long(), given)


def arrange(scenes: Sequence[Scene], seeds: Sequence[int], height: int, width: int) -> tuple[Objects, Tensor, Tensor]:
    """What :func:`render` shows, and where: objects (B, 2), backgrounds (B,), and which scenes have two objects (B,).

    The second object of a scene that has one is not to be seen.
    """
    for scene in scenes:
        if len(scene.objects) not in (1, 2):
            raise UsageError(f"a scene has 1 or 2 objects, not {len(scene.objects)}")
    keys = seed_keys(seeds)
    draws = lattice(keys, 16, 1, salt=1)[:, :, 0].to(torch.float64)
    unspoken = lattice(keys, 8, 1, salt=2)[:, :, 0].to(torch.float64)
    relation = choose(RELATIONS, [scene.relation for scene in scenes], unspoken[:, 0])
    background = choose(BACKGROUNDS, [scene.background for scene in scenes], unspoken[:, 1])

    def chosen(words: tuple[str, ...], name: str, first: int, default: str | None = None) -> Tensor:
        spoken = [[getattr(scene.objects[slot], name) or default for scene in scenes] for slot in (0, -1)]
        return torch.stack([choose(words, row, unspoken[:, first + i]) for i, row in enumerate(spoken)], dim=1)

    two = torch.tensor([len(scene.objects) == 2 for scene in scenes])
    size = chosen(SIZES, "size", 2)
    limits = torch.tensor(_DIAMETERS, dtype=torch.float64)[two.long()[:, None], size]
    radius = 0.5 * torch.lerp(limits[..., 0], limits[..., 1], draws[:, 0:2])
    tilt = (draws[:, 2:4] * 2.0 - 1.0) * _MAX_TILT
    unit = min(height, width)
    x, y = _places(two, relation, radius, draws[:, 4:], width / unit, height / unit)
    shape, colour = chosen(SHAPES, "shape", 6), chosen(COLOURS, "colour", 4)
    texture = chosen(TEXTURES, "texture", 0, "plain")
    return Objects(x, y, radius, tilt, shape, colour, texture, torch.zeros_like(tilt)), background, two


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


def _jittered(radius: Tensor, chance: Tensor, length: float) -> Tensor:
    room = length - 2.0 * radius - 2.0 * _MARGIN
    return 0.5 * length + (chance - 0.5) * 0.8 * room


def layouts(scenes: Sequence[Scene], seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Centres and radii in pixels, (B, 2, 3) float32 on the CPU: (x, y, radius) of both objects.

    For a scene of one object both rows are that object.
    """
    objects, _, two = arrange(scenes, seeds, height, width)
    places = objects.places(height, width)
    return torch.where(two[:, None, None], places, places[:, :1])


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Render scenes to (B, 3, height, width) float32 in [-1, 1] on ``device``.

    The same scene, seed and size give the same image on the same device, whatever else is in the
    batch. Raises ``UsageError`` for an empty batch, a size below 16 pixels, another number of seeds than
    scenes, or words outside the grammar.
    """
    if len(scenes) != len(seeds) or not scenes:
        raise UsageError(f"{len(scenes)} scenes and {len(seeds)} seeds: give as many, and at least one")
    if min(height, width) < 16:
        raise UsageError(f"an image has at least 16 x 16 pixels, not {height} x {width}")
    objects, background, two = arrange(scenes, seeds, height, width)
    keys = to_device_async(seed_keys(seeds), torch.device(device))
    image = paint_backgrounds(background, keys, height, width)
    image = paint_object(image, objects.at(slice(None), 0), keys, salt=3)
    if bool(two.any()):
        host_rows = two.nonzero()[:, 0]
        rows = to_device_async(host_rows, image.device)
        image[rows] = paint_object(image[rows], objects.at(host_rows, 1), keys[rows], salt=4)
    return image.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)


def paint_backgrounds(kinds: Tensor, keys: Tensor, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) of the backgrounds ``kinds`` (B,), which is on the CPU; on the device of ``keys``."""
    image = torch.empty(len(kinds), 3, height, width, device=keys.device)
    for name, rows in _rows_by_word(kinds, BACKGROUNDS, keys.device):
        image[rows] = PAINTERS[name](Canvas(keys[rows], height, width))
    return image


def _rows_by_word(kinds: Tensor, words: tuple[str, ...], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The rows of each word that occurs; ``kinds`` (B,) is on the CPU, so that no device has to be waited for."""
    for kind, word in enumerate(words):
        rows = (kinds == kind).nonzero()[:, 0]
        if len(rows):
            yield word, to_device_async(rows, device)


class _Brush:
    """One object of each image: local coordinates, and what depends on its kind."""

    def __init__(self, objects: Objects, size: tuple[int, int], device: torch.device) -> None:
        self.objects, self.size, self.device = objects, size, device
        self.place, self.upright = (self._send(angle) for angle in (objects.tilt + objects.turn, objects.tilt))
        self.y, self.x = Canvas(torch.empty(0, device=device), *size).axes()
        self.pixels = self.place[2] * min(size)

    def _send(self, angle: Tensor) -> Tensor:
        objects = self.objects
        values = torch.stack((objects.x, objects.y, objects.radius, torch.cos(angle), torch.sin(angle)))
        return to_device_async(values.to(torch.float32), self.device)[:, :, None, None]

    def local(self, place: Tensor, drop: float = 0.0) -> tuple[Tensor, Tensor]:
        """``u`` right and ``v`` up (B, H, W) in radii, of an object moved down right by ``drop`` radii."""
        x, y, radius, cos, sin = place
        u = (self.x - x) / radius - 0.7 * drop
        v = (y - self.y) / radius + drop
        return u * cos - v * sin, u * sin + v * cos

    def distance(self, drop: float = 0.0) -> Tensor:
        """Signed distance (B, H, W) in radii."""
        out = torch.empty(self.place.shape[1], *self.size, device=self.device)
        for name, rows in _rows_by_word(self.objects.shape, SHAPES, self.device):
            out[rows] = DISTANCES[name](*self.local(self.place[:, rows], drop))
        return out

    def tint(self) -> Tensor:
        """How much of the texture's second tint there is, (B, H, W) in [0, 1]."""
        out = torch.zeros(self.place.shape[1], *self.size, device=self.device)
        for name, rows in _rows_by_word(self.objects.texture, TEXTURES, self.device):
            if name in MASKS:
                out[rows] = (MASKS[name](*self.local(self.place[:, rows])) * self.pixels[rows] + 0.5).clamp_(0.0, 1.0)
        return out

    def colours(self) -> Tensor:
        """Body, tint and outline (3, B, 3, 1, 1)."""
        table = torch.tensor([PALETTE[name] for name in COLOURS], dtype=torch.float32)
        return to_device_async(table[self.objects.colour].transpose(0, 1), self.device)[..., None, None]


def paint_object(image: Tensor, objects: Objects, keys: Tensor, salt: int) -> Tensor:
    """Images (B, 3, H, W) with an object (B,) painted over each: shadow, body, texture, outline."""
    brush = _Brush(objects, (image.shape[2], image.shape[3]), image.device)
    shadow = 1.0 - smoothstep(-0.16, 0.24, brush.distance(drop=0.13))
    below = image * shadow.mul_(-0.42).add_(1.0)[:, None]
    edge = brush.distance() * brush.pixels
    body, tint, rim = brush.colours()
    jitter = 0.05 * (lattice(keys, 3, 1, salt)[..., None] - 0.5)
    colour = torch.lerp(body + jitter, tint + jitter, brush.tint()[:, None])
    u, v = brush.local(brush.upright)
    # Light from the upper left, and a slight darkening towards the outline.
    light = (v - 0.6 * u).clamp_(-1.3, 1.3) * 0.075 + 1.0
    right, up = u + 0.35, v - 0.4
    colour = colour * light[:, None] + 0.05 * torch.exp((right * right + up * up) * -4.0)[:, None]
    width = (0.065 * brush.pixels).clamp(min=1.2)
    colour = torch.lerp(colour, rim, (edge + width + 0.5).clamp(0.0, 1.0)[:, None])
    return torch.lerp(below, colour, (0.5 - edge).clamp(0.0, 1.0)[:, None])
