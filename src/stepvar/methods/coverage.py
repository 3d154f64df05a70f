"""A variant beside StepVAR: no token is far from a kept one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from stepvar.core.tokens import Grid
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.registry import register
from stepvar.methods.restoration import Anchors
from stepvar.methods.scores import ranks, top_tokens
from stepvar.methods.stepvar import StepVAR


@register
@dataclass(frozen=True)
class Coverage(StepVAR):
    """StepVAR's score, but first the best token of each cell of a coarse lattice, then the best of the rest.

    A variant of this project, not of the paper. Propagation from the nearest kept token is as good as that token is
    near; the highest scores may leave whole regions without one. Here every token has a kept one in its own cell, a
    square of side s of one frame, so at most ``sqrt(2) * (s - 1)`` away; s is the smallest that ``cover`` pays for.

    Attributes:
        cover: share of the kept tokens that may go to the lattice, in (0, 1]; 1 is a jittered regular grid.
    """

    name: ClassVar[str] = "coverage"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    cover: Annotated[float, Range(above=0, most=1, note="use stepvar for none")] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.restoration, Anchors):
            raise UsageError("restore='anchors': anchors cover the map already; use it with stepvar")

    def choose(self, scores: Tensor, count: int, grid: Grid) -> Tensor:
        cells, number = lattice(grid, max(1, int(self.cover * count)), scores.device)
        place = ranks(scores)
        best = torch.full((len(scores), number), scores.shape[1], dtype=place.dtype, device=place.device)
        best = best.scatter_reduce(1, cells.expand_as(place), place, "amin")
        return top_tokens(scores, count, place.argsort(dim=1).gather(1, best))


def cell_sides(grid: Grid, most: int) -> tuple[int, int]:
    """Frames and side of the smallest cells of which ``most`` cover the grid; in one frame each if that is enough."""
    for side in range(1, max(grid.h, grid.w) + 1):
        if grid.t * -(-grid.h // side) * -(-grid.w // side) <= most:
            return 1, side
    return -(-grid.t // most), max(grid.h, grid.w)


def lattice(grid: Grid, most: int, device: torch.device) -> tuple[Tensor, int]:
    """The cell of every token (grid.size,), and how many cells there are."""
    frames, side = cell_sides(grid, most)
    t, h, w = (torch.arange(length, device=device) for length in grid.shape)
    rows, columns = -(-grid.h // side), -(-grid.w // side)
    cells = (t // frames)[:, None, None] * rows * columns + (h // side)[None, :, None] * columns + w // side
    return cells.flatten(), -(-grid.t // frames) * rows * columns
