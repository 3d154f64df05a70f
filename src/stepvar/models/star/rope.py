"""Rotary positions on two axes, normalised: every grid spans the same coordinates, its corners in the same places."""

from __future__ import annotations

import torch

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.models.infinity.rope import axial_angles
from stepvar.models.layers import Rotary


def rotary_table(grid: Grid, head_dim: int, base: float, span: float) -> Rotary:
    """Cosines and sines (grid.size, head_dim / 2) in float32 for every cell of a grid of an image.

    Pairs below ``head_dim / 4`` turn with the column, the others with the row, each axis with the frequencies
    ``base ** (-4 j / head_dim)``. The coordinate of row ``y`` is ``y / (h - 1) * span``.
    """
    rows, columns = (torch.arange(side, dtype=torch.float32) * (span / max(side - 1, 1)) for side in (grid.h, grid.w))
    by_row, by_column = axial_angles(rows, columns, head_dim, base)
    angles = torch.cat([by_column, by_row], dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotary_tables(
    schedule: ScaleSchedule, head_dim: int, base: float, span: float, device: torch.device
) -> tuple[Rotary, ...]:
    """The table of each scale of a schedule, see :func:`rotary_table`."""
    tables = (rotary_table(grid, head_dim, base, span) for grid in schedule)
    return tuple((cos.to(device), sin.to(device)) for cos, sin in tables)
