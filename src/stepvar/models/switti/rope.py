"""Rotary positions on two axes: the corners of all grids coincide."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.models.infinity.rope import axial_angles
from stepvar.models.layers import Rotary
from stepvar.models.switti.config import SwittiConfig


def rotary_table(grid: Grid, config: SwittiConfig) -> Rotary:
    """Cosines and sines (grid.size, head_dim / 2) in float32 for every cell of a grid.

    Rows and columns of any grid run from 0 to ``rope_size``. Pairs below ``head_dim / 4`` turn with the column, the
    others with the row.
    """
    by_row, by_column = axial_angles(
        coordinates(grid.h, config.rope_size), coordinates(grid.w, config.rope_size), config.head_dim, config.rope_theta
    )
    angles = torch.cat([by_column, by_row], dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def coordinates(cells: int, size: float) -> Tensor:
    """Where ``cells`` rows or columns lie: from 0 to ``size``; a single one at 0."""
    return torch.arange(cells, dtype=torch.float32) * (size / max(cells - 1, 1))


def rotary_tables(schedule: ScaleSchedule, config: SwittiConfig, device: torch.device) -> tuple[Rotary, ...]:
    """The table of each scale of a schedule, see :func:`rotary_table`."""
    tables = (rotary_table(grid, config) for grid in schedule)
    return tuple((cos.to(device), sin.to(device)) for cos, sin in tables)
