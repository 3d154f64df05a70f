"""Backgrounds of the rendered scenes: smooth gradients and moderately fine, structured textures.

Every background is a function of a :class:`Canvas` to an image (B, 3, H, W) float32, about [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.utils.device import to_device_async

from .noise import lattice, smoothstep, value_noise

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Canvas:
    """Where to paint: hash keys (B,) on the device, and the size in pixels."""

    keys: Tensor
    height: int
    width: int

    @property
    def unit(self) -> int:
        """Short side in pixels: the unit of every length."""
        return min(self.height, self.width)

    def axes(self) -> tuple[Tensor, Tensor]:
        """Pixel centres in short sides: ``y`` (H, 1) and ``x`` (1, W)."""
        device = self.keys.device
        y = (torch.arange(self.height, device=device, dtype=torch.float32) + 0.5) / self.unit
        x = (torch.arange(self.width, device=device, dtype=torch.float32) + 0.5) / self.unit
        return y[:, None], x[None, :]

    @property
    def depth(self) -> Tensor:
        """From 0 at the upper edge to 1 at the lower one, (H, 1)."""
        return self.axes()[0] * (self.unit / self.height)

    def cells(self, row: Tensor, column: Tensor, grid: tuple[int, int], salts: Iterable[int]) -> list[Tensor]:
        """Uniform numbers (B, H, W) for each salt, one for every cell of a grid that pixels may be in."""
        place = (row * grid[1] + column).long().view(-1)
        numbers = (lattice(self.keys, *grid, salt).flatten(1).index_select(1, place) for salt in salts)
        return [values.view(-1, self.height, self.width) for values in numbers]

    def picks(self, count: int, salt: int) -> tuple[Tensor, ...]:
        """``count`` uniform numbers for each image, each (B, 1, 1)."""
        return tuple(lattice(self.keys, count, 1, salt)[:, :, :, None].unbind(1))

    def noise(self, down: float, along: float, salt: int) -> Tensor:
        """Value noise (B, H, W) in [0, 1) whose cells are ``down`` x ``along`` short sides."""
        return value_noise(self.keys, self.height, self.width, (down * self.unit, along * self.unit), salt)

    def colour(self, value: Colour) -> Tensor:
        """A colour as (3, 1, 1)."""
        return to_device_async(torch.tensor(value, dtype=torch.float32)[:, None, None], self.keys.device)

    def blend(self, first: Colour, second: Colour, amount: Tensor) -> Tensor:
        """Colours from ``first`` (amount 0) to ``second`` (amount 1); (B, H, W) to (B, 3, H, W)."""
        start, end = self.colour(first), self.colour(second)
        return start + amount[:, None] * (end - start)

    def over(self, image: Tensor, colour: Colour, amount: Tensor) -> Tensor:
        """Paint ``colour`` over an image with opacity ``amount`` (B, H, W)."""
        return torch.lerp(image, self.colour(colour), amount[:, None])


def sky(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    tone = canvas.picks(1, 10)[0]
    depth = (canvas.depth + 0.3 * (tone - 0.5)) + 0.0 * x
    image = canvas.blend((0.30, 0.57, 0.90), (0.76, 0.90, 0.98), depth)
    puffs = canvas.noise(0.09, 0.12, 11) * 0.65 + canvas.noise(0.04, 0.05, 12) * 0.35
    field = torch.zeros_like(puffs)
    aspect_x, aspect_y = canvas.width / canvas.unit, canvas.height / canvas.unit
    for index in range(3):
        px, py, size, present = canvas.picks(4, 13 + index)
        wide = 0.17 + 0.12 * size
        dx, dy = (x - px * aspect_x) / wide, (y - (0.08 + 0.8 * py) * aspect_y) / (0.42 * wide)
        # The first cloud is always there, the two others half of the time.
        shown = (present < 0.5).to(torch.float32) if index else 1.0
        field = torch.maximum(field, torch.exp(-(dx * dx + dy * dy)) * shown)
    cloud = smoothstep(0.22, 0.62, field * (0.55 + 0.9 * puffs))
    return canvas.over(image, (0.97, 0.98, 1.0), cloud * 0.9)


def sunset(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    px, tone = canvas.picks(2, 20)
    depth = canvas.depth + 0.16 * (tone - 0.5)
    upper = canvas.blend((0.33, 0.23, 0.47), (0.85, 0.48, 0.50), smoothstep(0.0, 0.6, depth))
    image = canvas.over(upper, (0.99, 0.76, 0.48), smoothstep(0.45, 1.05, depth)) + 0.0 * x
    dx = x - (0.2 + 0.6 * px) * (canvas.width / canvas.unit)
    dy = y - 0.92 * (canvas.height / canvas.unit)
    image = canvas.over(image, (1.0, 0.90, 0.66), torch.exp(-(dx * dx + 1.6 * dy * dy) * 9.0) * 0.8)
    bands = smoothstep(0.60, 0.85, canvas.noise(0.07, 0.55, 21) * 0.7 + canvas.noise(0.035, 0.25, 22) * 0.3)
    return canvas.over(image, (0.62, 0.36, 0.52), bands * 0.45)


def snow(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    lift = canvas.noise(0.30, 0.55, 30) * 0.6 + canvas.noise(0.13, 0.22, 31) * 0.4
    drift = torch.sin((y * 3.2 + lift * 1.5) * (2.0 * math.pi)) * 0.5 + 0.5
    shade = 0.55 * (1.0 - lift) + 0.35 * drift + 0.0 * x
    image = canvas.blend((0.97, 0.98, 1.0), (0.74, 0.82, 0.92), shade)
    return image + 0.02 * (canvas.noise(0.012, 0.012, 32)[:, None] - 0.5)


def night(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    px, py = canvas.picks(2, 40)
    depth = canvas.depth + 0.0 * x
    haze = canvas.noise(0.3, 0.45, 41)
    image = canvas.blend((0.06, 0.08, 0.24), (0.17, 0.20, 0.42), 0.75 * depth + 0.35 * (haze - 0.5))
    dx = x - px * (canvas.width / canvas.unit)
    dy = y - (0.05 + 0.3 * py) * (canvas.height / canvas.unit)
    glow = torch.exp(-(dx * dx + dy * dy) * 14.0)
    image = canvas.over(image, (0.62, 0.68, 0.88), glow * 0.45)
    return image + (_stars(canvas) * 0.75)[:, None]


def _stars(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    cell = 1.0 / 9.0
    row, column = torch.floor(y / cell), torch.floor(x / cell)
    grid = (canvas.height * 9 // canvas.unit + 2, canvas.width * 9 // canvas.unit + 2)
    right, down, bright = canvas.cells(row, column, grid, (42, 43, 44))
    # A star stays inside its cell, so no pixel has to look at its neighbours' cells.
    dx = x / cell - column - (0.2 + 0.6 * right)
    dy = y / cell - row - (0.2 + 0.6 * down)
    return torch.exp(-(dx * dx + dy * dy) * 170.0) * smoothstep(0.45, 1.0, bright)


def grass(canvas: Canvas) -> Tensor:
    blades = canvas.noise(0.085, 0.014, 50) * 0.6 + canvas.noise(0.05, 0.024, 51) * 0.4
    patches = canvas.noise(0.22, 0.3, 52)
    shade = 0.62 * blades + 0.35 * patches + 0.18 * (1.0 - canvas.depth) - 0.05
    return canvas.blend((0.24, 0.42, 0.14), (0.66, 0.80, 0.38), shade)


def sand(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    phase, slope = canvas.picks(2, 60)
    warp = canvas.noise(0.26, 0.34, 61)
    ripple = torch.sin((y * 13.0 + x * (slope - 0.5) * 5.0 + warp * 2.6 + phase) * (2.0 * math.pi))
    dune = canvas.noise(0.4, 0.6, 62)
    grain = canvas.noise(0.011, 0.011, 63) - 0.5
    shade = 0.42 + 0.20 * ripple * (0.4 + 0.6 * dune) + 0.45 * (dune - 0.5) + 0.22 * grain
    return canvas.blend((0.93, 0.84, 0.64), (0.72, 0.58, 0.38), shade)


def water(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    phase, slope = canvas.picks(2, 70)
    warp = canvas.noise(0.12, 0.22, 71)
    swell = torch.sin((y * 9.0 + x * (slope - 0.5) * 3.0 + warp * 1.7 + phase) * (2.0 * math.pi))
    glints = canvas.noise(0.022, 0.085, 72)
    depth = canvas.depth
    shade = 0.30 + 0.17 * swell + 0.30 * (glints - 0.5) + 0.25 * (1.0 - depth)
    image = canvas.blend((0.10, 0.40, 0.50), (0.46, 0.78, 0.80), shade)
    crest = smoothstep(0.62, 0.95, glints * (0.62 + 0.38 * swell))
    return canvas.over(image, (0.86, 0.97, 0.97), crest * 0.6)


def wood(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    plank = 0.25
    row = torch.floor(y / plank) + 0.0 * x
    tone, shift = canvas.cells(row, 0.0 * x, (math.ceil(canvas.height / canvas.unit / plank) + 1, 1), (80, 81))
    warp = canvas.noise(0.09, 0.42, 82)
    rings = torch.sin((y * 17.0 + shift * 3.0 + warp * 2.8) * (2.0 * math.pi))
    fibre = canvas.noise(0.011, 0.16, 83) - 0.5
    shade = 0.40 + 0.17 * rings + 0.42 * (tone - 0.5) + 0.30 * fibre
    image = canvas.blend((0.76, 0.56, 0.36), (0.48, 0.31, 0.17), shade)
    offset = torch.remainder(y, plank)
    seam = 1.0 - smoothstep(0.003, 0.010, torch.minimum(offset, plank - offset))
    return canvas.over(image, (0.25, 0.15, 0.08), (seam * 0.7 + 0.0 * x)[None])


def brick(canvas: Canvas) -> Tensor:
    y, x = canvas.axes()
    tall, wide = 0.1, 0.22
    row = torch.floor(y / tall)
    along = x / wide + 0.5 * torch.remainder(row, 2.0)
    column = torch.floor(along)
    grid = (math.ceil(canvas.height / canvas.unit / tall) + 1, math.ceil(canvas.width / canvas.unit / wide) + 2)
    (tone,) = canvas.cells(row, column, grid, (90,))
    worn = canvas.noise(0.03, 0.04, 91) * 0.6 + canvas.noise(0.013, 0.016, 92) * 0.4
    image = canvas.blend((0.70, 0.47, 0.39), (0.47, 0.27, 0.23), 0.65 * tone + 0.45 * (worn - 0.5) + 0.15)
    down, across = torch.remainder(y, tall), (along - column) * wide
    edge = torch.minimum(torch.minimum(down, tall - down), torch.minimum(across, wide - across))
    mortar = 1.0 - smoothstep(0.003, 0.015, edge)
    return canvas.over(image, (0.74, 0.67, 0.61), mortar[None] * 0.9)


PAINTERS: dict[str, Callable[[Canvas], Tensor]] = {
    painter.__name__: painter for painter in (sky, sunset, snow, night, grass, sand, water, wood, brick)
}
"""The painter of each background."""
