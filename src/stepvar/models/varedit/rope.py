"""Rotary positions of source and target tokens, which follow from the running number of a token."""

from __future__ import annotations

import torch

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.infinity.rope import rotary_table
from stepvar.models.infinity.schedules import RATIOS
from stepvar.models.layers import Rotary


def rotary_tables(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> tuple[Rotary, ...]:
    """Cosines and sines (N, head_dim / 2) of the source tokens, and of the tokens of each scale.

    One sequence of positions belongs to an aspect ratio: the cells of the last 1M grid, shifted by its height and
    width, and behind them the cells of all 1M scales. Source, scale 0, scale 1, ... of the schedule in use take from it
    one after the other. At 1M the source lies diagonally beyond the target; at smaller sizes, whose source has fewer
    tokens, the scales begin inside the region of the source, and no row of one is aligned to a row of another.

    Raises:
        UsageError: for a schedule with more tokens than there are positions.
    """
    frame = schedule.frame or schedule.grids[-1]
    source = rotary_table(frame, frame, head_dim, origin=(frame.h, frame.w))
    parts = [source, *(rotary_table(grid, frame, head_dim) for grid in _full(schedule))]
    cos, sin = (torch.cat(part) for part in zip(*parts, strict=True))
    sizes = [schedule.grids[-1].size, *(grid.size for grid in schedule)]
    if sum(sizes) > len(cos):
        raise UsageError(
            f"schedule {schedule.name!r}: {sum(sizes)} tokens with the source, and positions for {len(cos)}; "
            "take a smaller resolution"
        )
    tables = zip(*(part[: sum(sizes)].to(device).split(sizes) for part in (cos, sin)), strict=True)
    return tuple(tables)


def _full(schedule: ScaleSchedule) -> tuple[Grid, ...]:
    """The grids of the 1M schedule of the same aspect ratio; of a schedule that was not published, its own."""
    sides = RATIOS.get(schedule.ratio or 0.0, ())
    full = tuple(Grid(1, h, w) for h, w in sides)
    return full if schedule.grids == full[: len(schedule)] else schedule.grids
