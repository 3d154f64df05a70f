"""How values of kept tokens become values of all: strategies that every pruning method can use.

What is restored, the tokens' new state or the update that the blocks made, is the method's ``propagate``; where it
comes from is said here. :data:`RESTORATIONS` has the strategies by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import Grid, Selection, scatter_tokens
from stepvar.errors import UsageError
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.propagation import axis_weights, nearest_kept, spread

RestorationName = Literal["nearest", "blend", "anchors", "cached"]

CHUNK = 2**22
"""Distances between tokens that are held at a time."""


@dataclass(frozen=True)
class Restoration(ABC):
    """Where the values of pruned tokens come from.

    Attributes:
        reads_past: whether it needs the values of the last pass of the clip that was not pruned.
    """

    reads_past: ClassVar[bool] = False

    def anchors(self, grid: Grid) -> tuple[int, ...]:
        """Ascending indices of the tokens that it needs kept, whatever they score."""
        return ()

    @abstractmethod
    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        """Which of the kept tokens (R, K) stand in for each token of the grid.

        Args:
            temporal_weight: how many cells a step from frame to frame counts like.
        """

    def restore(self, values: Tensor, selection: Selection, step: Step, past: CachedFeatures | None) -> Tensor:
        """Values (R, K, C) of the kept tokens -> values (R, N, C) of all, the kept ones unchanged."""
        return spread(values, selection)


@dataclass(frozen=True)
class Nearest(Restoration):
    """The nearest kept token of the same scale (StepVAR)."""

    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        return Selection(kept, nearest_kept(kept, grid, temporal_weight))


@dataclass(frozen=True)
class Blend(Restoration):
    """A blend of the nearest few kept tokens, weighted by the inverse of their squared distance.

    Attributes:
        neighbours: how many.
    """

    neighbours: int = 4

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise UsageError(f"neighbours={self.neighbours}: must be at least 1")

    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        cells = cell_positions(grid, kept.device)
        places = cells[kept]
        count = min(self.neighbours, kept.shape[1])
        size = max(1, CHUNK // kept.numel())
        found = [_nearest_few(part, places, count, axis_weights(temporal_weight)) for part in cells.split(size)]
        distance, source = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        # Kept tokens, at distance 0, are not blended.
        weights = 1 / distance.clamp(min=1)
        return Selection(kept, source, weights / weights.sum(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Anchors(Restoration):
    """The nearest of uniformly spaced anchors, one in each ``stride`` x ``stride`` cells of each frame, always kept.

    Attributes:
        stride: distance between neighbouring anchors.
    """

    stride: int = 4

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UsageError(f"stride={self.stride}: must be at least 1")

    def anchors(self, grid: Grid) -> tuple[int, ...]:
        rows, columns = self._places(grid.h), self._places(grid.w)
        return tuple((t * grid.h + row) * grid.w + column for t in range(grid.t) for row in rows for column in columns)

    def _places(self, length: int) -> list[int]:
        """The middle of each stretch of ``stride`` cells; the last one may be shorter."""
        return [(start + min(start + self.stride, length)) // 2 for start in range(0, length, self.stride)]

    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        anchors = index_tensor(self.anchors(grid), kept.device).unsqueeze(0)
        standing_in = anchors[0][nearest_kept(anchors, grid, temporal_weight)[0]].expand(len(kept), -1)
        rank = torch.zeros(len(kept), grid.size, dtype=torch.int64, device=kept.device)
        own = torch.arange(kept.shape[1], device=kept.device).expand(len(kept), -1)
        rank = rank.scatter(1, kept, own)
        return Selection(kept, rank.gather(1, standing_in).scatter(1, kept, own))


@dataclass(frozen=True)
class Cached(Restoration):
    """The values of the last pass that was not pruned, resized by area (FastVAR, section 3)."""

    reads_past: ClassVar[bool] = True

    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        return Selection(kept, nearest_kept(kept, grid, temporal_weight))

    def restore(self, values: Tensor, selection: Selection, step: Step, past: CachedFeatures | None) -> Tensor:
        assert past is not None  # what reads the past is given it
        return scatter_tokens(past.at(step, len(values), "area"), selection.kept, values)


RESTORATIONS: dict[RestorationName, Restoration] = {
    "nearest": Nearest(),
    "blend": Blend(),
    "anchors": Anchors(),
    "cached": Cached(),
}


@lru_cache(maxsize=64)
def index_tensor(indices: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices on a device, copied there once."""
    return torch.tensor(indices, device=device)


def cell_positions(grid: Grid, device: torch.device) -> Tensor:
    """(frame, row, column) of every cell: (grid.size, 3) int64."""
    axes = [torch.arange(side, device=device) for side in grid.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def _nearest_few(cells: Tensor, places: Tensor, count: int, weights: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Squared distances and indices (R, N, count) of the nearest of ``places`` (R, K, 3) to each of ``cells`` (N, 3).

    Squared distances along each axis count by its weight. The least of ``squared distance * K + index`` are unique:
    ties go to the lower index on every device.
    """
    axes = zip(cells.unbind(1), places.unbind(2), weights, strict=True)
    apart = [(cell[:, None] - place[:, None, :]).square() * weight for cell, place, weight in axes]
    distance = torch.stack(apart).sum(dim=0)
    number = places.shape[1]
    keys = distance * number + torch.arange(number, device=places.device)
    nearest = keys.topk(count, dim=-1, largest=False, sorted=True).values
    return nearest // number, nearest % number
