"""Signed distances of the object shapes and the masks of their textures.

Coordinates are local to an object: ``u`` to the right and ``v`` up, both in units of the object's
radius. Distances are negative inside, in the same units. All functions are elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


def circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 1.0


def square(u: Tensor, v: Tensor) -> Tensor:
    a, b = u.abs() - 0.82, v.abs() - 0.82
    outside = torch.hypot(a.clamp(min=0.0), b.clamp(min=0.0))
    return outside + torch.maximum(a, b).clamp(max=0.0) - 0.04


def triangle(u: Tensor, v: Tensor) -> Tensor:
    side, slope = 1.02, math.sqrt(3.0)
    # The centroid is put a little low, so that the triangle looks centred.
    x, y = u.abs() - side, v + 0.14 + side / slope
    fold = x + slope * y > 0.0
    x, y = torch.where(fold, (x - slope * y) * 0.5, x), torch.where(fold, (-slope * x - y) * 0.5, y)
    x = x - x.clamp(-2.0 * side, 0.0)
    return -torch.hypot(x, y) * torch.sign(y) - 0.05


def star(u: Tensor, v: Tensor) -> Tensor:
    outer, ratio = 1.14, 0.50
    kx, ky = math.cos(math.pi / 5), -math.sin(math.pi / 5)
    x, y = u.abs(), v + 0.06
    for ax in (kx, -kx):
        along = 2.0 * (ax * x + ky * y).clamp(min=0.0)
        x, y = x - along * ax, y - along * ky
    x, y = x.abs(), y - outer
    bx, by = -ky * ratio, kx * ratio - 1.0
    h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0.0, outer)
    return torch.hypot(x - bx * h, y - by * h) * torch.sign(y * bx - x * by) - 0.04


def heart(u: Tensor, v: Tensor) -> Tensor:
    scale = 1.72
    x, y = u.abs() * (1.0 / scale), (v + 0.98) * (1.0 / scale)
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2.0) / 4.0
    foot = (x + y).clamp(min=0.0) * 0.5
    inner = torch.minimum(torch.hypot(x, y - 1.0), torch.hypot(x - foot, y - foot)) * torch.sign(x - y)
    return torch.where(x + y > 1.0, lobe, inner) * scale - 0.04


def ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.76).abs() - 0.27


def cross(u: Tensor, v: Tensor) -> Tensor:
    long, short = 1.0, 0.34
    a, b = u.abs(), v.abs()
    x, y = torch.maximum(a, b) - long, torch.minimum(a, b) - short
    k = torch.maximum(x, y)
    wx = torch.where(k > 0.0, x, short - (x + long))
    wy = torch.where(k > 0.0, y, -k)
    return torch.sign(k) * torch.hypot(wx.clamp(min=0.0), wy.clamp(min=0.0)) - 0.03


def diamond(u: Tensor, v: Tensor) -> Tensor:
    bx, by = 0.74, 1.16
    x, y = u.abs(), v.abs()
    h = (((bx - 2.0 * x) * bx - (by - 2.0 * y) * by) / (bx * bx + by * by)).clamp(-1.0, 1.0)
    distance = torch.hypot(x - 0.5 * bx * (1.0 - h), y - 0.5 * by * (1.0 + h))
    return distance * torch.sign(x * by + y * bx - bx * by) - 0.03


DISTANCES: dict[str, Field] = {
    shape.__name__: shape for shape in (circle, square, triangle, star, heart, ring, cross, diamond)
}
"""Signed distance of each shape."""


def striped(u: Tensor, v: Tensor) -> Tensor:
    period = 0.52
    across = (u + v) * (math.sqrt(0.5) * 2.0 * math.pi / period)
    return torch.sin(across) * (period / (2.0 * math.pi))


def dotted(u: Tensor, v: Tensor) -> Tensor:
    pitch, size = 0.56, 0.17
    row = torch.round(v * (1.0 / pitch))
    # Every other row is moved by half a pitch.
    x = u * (1.0 / pitch) + 0.5 * torch.remainder(row, 2.0)
    return size - torch.hypot((x - torch.round(x)) * pitch, v - row * pitch)


def checkered(u: Tensor, v: Tensor) -> Tensor:
    cell = 0.46
    wave = torch.sin(u * (math.pi / cell)) * torch.sin(v * (math.pi / cell))
    return wave * (cell / math.pi)


MASKS: dict[str, Field] = {texture.__name__: texture for texture in (striped, dotted, checkered)}
"""Distance into the second tint of each texture: positive where the tint is, near 0 at its edges."""
