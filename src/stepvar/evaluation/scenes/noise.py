"""Counter-based pseudo-random numbers and smooth value noise, evaluated on the device.

A number depends on its key, its salt and its position only: not on the batch, and not on any
generator's state. The integer hash gives the same bits on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.utils.device import to_device_async
from stepvar.utils.hashing import MASK, high_bits, mix_, signed


def seed_keys(seeds: Sequence[int]) -> Tensor:
    """Fold integers of any size and sign to hash keys, (B,) int64 in [0, 2**32)."""
    return torch.tensor([(seed ^ (seed >> 32)) & MASK for seed in seeds], dtype=torch.int64)


def lattice(keys: Tensor, rows: int, columns: int, salt: int) -> Tensor:
    """Independent uniform numbers in [0, 1), (B, rows, columns) float32 on the device of ``keys`` (B,)."""
    # As int32 the numbers wrap, as the hash wants them.
    start = mix_((keys + 0x9E3779B9 * (salt + 1)).bitwise_and_(MASK).to(torch.int32))
    counter = torch.arange(rows * columns, dtype=torch.int32, device=keys.device)
    hashed = mix_(start[:, None] + counter * signed(0x85EBCA6B))
    # 24 bits are exact in float32.
    return high_bits(hashed, 24).to(torch.float32).mul_(2.0**-24).view(-1, rows, columns)


def _knots(length: int, cell: float, device: torch.device) -> tuple[Tensor, Tensor, int]:
    # In float64 on the CPU, so that every device agrees on the cell of each pixel.
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / cell
    index = position.floor()
    fraction = position - index
    weight = fraction * fraction * fraction * (fraction * (fraction * 6.0 - 15.0) + 10.0)
    count = math.floor(length / cell) + 2
    return to_device_async(index.to(torch.int64), device), to_device_async(weight.to(torch.float32), device), count


def value_noise(keys: Tensor, height: int, width: int, cell: tuple[float, float], salt: int) -> Tensor:
    """Smooth noise in [0, 1), (B, height, width) float32.

    ``cell`` is the (vertical, horizontal) distance in pixels between independent values.
    """
    row, down, rows = _knots(height, max(cell[0], 1.0), keys.device)
    column, along, columns = _knots(width, max(cell[1], 1.0), keys.device)
    values = lattice(keys, rows, columns, salt)
    lines = torch.lerp(values.index_select(1, row), values.index_select(1, row + 1), down[None, :, None])
    left, right = lines.index_select(2, column), lines.index_select(2, column + 1)
    return torch.lerp(left, right, along)


def smoothstep(low: float, high: float, value: Tensor) -> Tensor:
    """0 below ``low``, 1 above ``high``, smooth in between."""
    t = ((value - low) * (1.0 / (high - low))).clamp_(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
