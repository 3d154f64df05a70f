"""Rotary positions on four axes: which pass, which frame, which row, which column."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.core.tokens import Grid
from stepvar.models.layers import Rotary

BASE = 10000.0


class RotaryTable:
    """Cosines and sines of whole coordinates; all axes share one table, since they turn with the same frequencies.

    A quarter of the pairs of a head turns with each axis; pair ``i`` of the ``q`` of an axis turns by
    ``coordinate * 10000 ** (-i / q)``.

    Args:
        head_dim: channels of a head, a multiple of 8.
        length: coordinates that are known, from 0.
    """

    def __init__(self, head_dim: int, length: int, device: torch.device) -> None:
        quarter = head_dim // 8
        frequencies = 1.0 / BASE ** (torch.arange(quarter, dtype=torch.float32) / quarter)
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)

    def at(self, coordinates: Tensor) -> Rotary:
        """Coordinates (R, N, 4) -> cosines and sines (R, 1, N, head_dim / 2)."""
        return self.cos[coordinates].flatten(-2).unsqueeze(1), self.sin[coordinates].flatten(-2).unsqueeze(1)


def text_coordinates(count: int, device: torch.device) -> Tensor:
    """Those of the first ``count`` text tokens, which lie along the axis of the passes: (1, count, 4)."""
    places = torch.arange(count, device=device).unsqueeze(-1)
    return torch.cat([places, torch.zeros_like(places).expand(-1, 3)], dim=-1).unsqueeze(0)


def token_coordinates(positions: Tensor, grid: Grid, frame: Grid, scale: int, frames: Sequence[int]) -> Tensor:
    """Those of the tokens of a grid at ``positions`` (R, N): (R or 1, N, 4).

    Args:
        frame: the grid in whose coordinates rows and columns are placed.
        scale: coordinate of the pass.
        frames: coordinate of each frame of the grid.
    """
    if positions.stride(0) == 0:
        positions = positions[:1]  # a dense map: the same for all rows
    device = positions.device
    first = frames[0]
    times = positions // (grid.h * grid.w) + first
    if list(frames) != list(range(first, first + grid.t)):
        times = torch.tensor(list(frames), device=device)[positions // (grid.h * grid.w)]
    rows = spread(grid.h, frame.h, device)[positions // grid.w % grid.h]
    columns = spread(grid.w, frame.w, device)[positions % grid.w]
    return torch.stack([torch.full_like(positions, scale), times, rows, columns], dim=-1)


def spread(cells: int, frame: int, device: torch.device) -> Tensor:
    """Where each of ``cells`` rows or columns lies in a frame of ``frame``: ``i * (frame / cells)``, half to even.

    The product is rounded to float32 first, as in the published implementation.
    """
    return (torch.arange(cells, dtype=torch.float32, device=device) * (frame / cells)).round().long()
