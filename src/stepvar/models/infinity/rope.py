"""Rotary positions on two axes, in the coordinates of the schedule's frame."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.models.layers import Rotary

BASE = 10000.0


def frame_coordinates(cells: int, frame: int) -> list[float]:
    """Where each of ``cells`` rows or columns lies in a frame of ``frame``: ``i * frame / cells``, half to even.

    A grid finer than the frame, which no published schedule has, is not rounded: its cells would share places.
    """
    places = [Fraction(i * frame, cells) for i in range(cells)]
    return [float(place if cells > frame else round(place)) for place in places]


def rotary_table(grid: Grid, frame: Grid, head_dim: int, origin: tuple[int, int] = (0, 0)) -> Rotary:
    """Cosines and sines (grid.size, head_dim / 2) in float32 for every cell of a grid, the first at ``origin`` (y, x).

    Pairs below ``head_dim / 4`` turn with the row, the others with the column, each axis with the frequencies
    ``10000 ** (-2 i / (head_dim / 2))``.
    """
    rows = torch.tensor(frame_coordinates(grid.h, frame.h), dtype=torch.float32) + origin[0]
    columns = torch.tensor(frame_coordinates(grid.w, frame.w), dtype=torch.float32) + origin[1]
    angles = torch.cat(axial_angles(rows, columns, head_dim, BASE), dim=-1).flatten(0, 1).repeat(grid.t, 1)
    return angles.cos(), angles.sin()


def axial_angles(rows: Tensor, columns: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Angles (h, w, head_dim / 4) of all cells by row and by column.

    Args:
        rows, columns: coordinates (h,) and (w,) in float32.
        base: of the frequencies ``base ** (-2 i / (head_dim / 2))``.
    """
    count = head_dim // 4
    frequencies = 1.0 / base ** (torch.arange(0, 2 * count, 2, dtype=torch.float32) / (2 * count))
    by_row = torch.outer(rows, frequencies)[:, None].expand(-1, len(columns), -1)
    by_column = torch.outer(columns, frequencies)[None].expand(len(rows), -1, -1)
    return by_row, by_column


def rotary_tables(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> tuple[Rotary, ...]:
    """The table of each scale of a schedule, see :func:`rotary_table`."""
    frame = schedule.frame or schedule.grids[-1]
    tables = (rotary_table(grid, frame, head_dim) for grid in schedule)
    return tuple((cos.to(device), sin.to(device)) for cos, sin in tables)
