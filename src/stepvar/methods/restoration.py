"""Restoration: how values of the kept tokens become values of all. Every pruning method can use every strategy.

What is restored, the tokens' new state or the update that the blocks made, is the method's ``propagate``; where it
comes from is said here. :data:`RESTORATIONS` has the strategies by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import Grid, Selection, gather_tokens, scatter_tokens
from stepvar.core.values import Range, check_fields
from stepvar.methods.cached_features import CachedFeatures

RestorationName = Literal["nearest", "blend", "anchors", "cached"]

CHUNK = 2**22
"""Distances between tokens that are held at a time."""

FINEST = 64
"""Largest denominator of a temporal weight."""


@dataclass(frozen=True)
class Restoration(ABC):
    """Where the values of pruned tokens come from.

    Attributes:
        reads_cache: whether it needs the values of the last pass of the clip that was not pruned.
    """

    reads_cache: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def anchor_count(self, grid: Grid) -> int:
        """How many tokens it needs kept, whatever they score."""
        return 0

    def anchors(self, grid: Grid, device: torch.device) -> Tensor | None:
        """Ascending indices (anchor_count,) of these tokens."""
        return None

    @abstractmethod
    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        """Which of the kept tokens (R, K) stand in for each token of the grid.

        Args:
            temporal_weight: how many cells a step from frame to frame counts like.
        """

    def restore(self, values: Tensor, selection: Selection, step: Step, cached: CachedFeatures | None) -> Tensor:
        """Values (R, K, C) of the kept tokens -> values (R, N, C) of all, the kept ones unchanged."""
        return restore_from_sources(values, selection)


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

    neighbours: Annotated[int, Range(1, 64)] = 4

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

    stride: Annotated[int, Range(1, 10_000)] = 4

    def anchor_count(self, grid: Grid) -> int:
        return grid.t * -(-grid.h // self.stride) * -(-grid.w // self.stride)

    def anchors(self, grid: Grid, device: torch.device) -> Tensor:
        frames = torch.arange(grid.t, device=device)[:, None, None]
        rows, columns = self._places(grid.h, device)[:, None], self._places(grid.w, device)
        return ((frames * grid.h + rows) * grid.w + columns).flatten()

    def _places(self, length: int, device: torch.device) -> Tensor:
        """The middle of each stretch of ``stride`` cells; the last one may be shorter."""
        starts = torch.arange(0, length, self.stride, device=device)
        return (starts + (starts + self.stride).clamp(max=length)) // 2

    def sources(self, kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Selection:
        anchors = self.anchors(grid, kept.device).unsqueeze(0)
        standing_in = anchors[0][nearest_kept(anchors, grid, temporal_weight)[0]].expand(len(kept), -1)
        rank = torch.zeros(len(kept), grid.size, dtype=torch.int64, device=kept.device)
        own = torch.arange(kept.shape[1], device=kept.device).expand(len(kept), -1)
        rank = rank.scatter(1, kept, own)
        return Selection(kept, rank.gather(1, standing_in).scatter(1, kept, own))


@dataclass(frozen=True)
class Cached(Nearest):
    """The values of the last pass that was not pruned, resized by area (FastVAR, section 3)."""

    reads_cache: ClassVar[bool] = True

    def restore(self, values: Tensor, selection: Selection, step: Step, cached: CachedFeatures | None) -> Tensor:
        assert cached is not None  # a plan that has none is refused
        return scatter_tokens(cached.at(step, len(values), "area"), selection.kept, values)


RESTORATIONS: dict[RestorationName, Restoration] = {
    "nearest": Nearest(),
    "blend": Blend(),
    "anchors": Anchors(),
    "cached": Cached(),
}


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


def axis_weights(temporal_weight: float) -> tuple[int, int, int]:
    """Whole numbers (time, rows, columns) by which squared distances along each axis count.

    A step in time counts like ``temporal_weight`` cells; the weight is taken as a fraction, so that distances stay
    whole and comparisons exact.
    """
    weight = Fraction(temporal_weight).limit_denominator(FINEST)
    return (weight.numerator**2, weight.denominator**2, weight.denominator**2)


def nearest_kept(kept: Tensor, grid: Grid, temporal_weight: float = 1.0) -> Tensor:
    """For every cell of the grid, which kept cell is nearest (Euclidean distance between grid positions).

    An exact distance transform that carries its sources: distances separate by axis, so one pass per axis over
    ``squared distance * size + index`` finds the lexicographic minimum of (distance, index). Work and memory grow
    with ``size * (t + h + w)``, not with ``size * kept``. Ties go to the lower row-major index.

    Args:
        kept: (R, K) int64, ascending indices of the kept cells, K >= 1.
        temporal_weight: how many cells a step from frame to frame counts like.

    Returns:
        (R, grid.size) int64 indices into ``kept``.
    """
    rows, size, weights = kept.shape[0], grid.size, axis_weights(temporal_weight)
    unreached = size * (1 + sum(weight * side**2 for weight, side in zip(weights, grid.shape, strict=True)))
    keys = torch.full((rows, size), unreached, dtype=torch.int64, device=kept.device)
    keys = keys.scatter(1, kept, kept).view(rows, *grid.shape)
    for axis in (3, 2, 1):
        keys = _sweep(keys, axis, size * weights[axis - 1])
    nearest = keys.reshape(rows, size) % size
    rank = torch.zeros((rows, size), dtype=torch.int64, device=kept.device)
    rank = rank.scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand(rows, -1))
    return rank.gather(1, nearest)


def _sweep(keys: Tensor, axis: int, cost_of_one: int) -> Tensor:
    """``out[i] = min_j keys[j] + (i - j)^2 * cost_of_one`` along one axis."""
    length = keys.shape[axis]
    if length == 1:
        return keys
    place = torch.arange(length, device=keys.device)
    cost = (place[:, None] - place[None, :]).square() * cost_of_one
    reached = (keys.movedim(axis, -1).unsqueeze(-2) + cost).amin(dim=-1)
    return reached.movedim(-1, axis)


def restore_from_sources(values: Tensor, selection: Selection) -> Tensor:
    """Values (R, K, C) of the kept tokens at every token (R, N, C): each takes its source's, or a blend of several."""
    if selection.weights is None:
        return gather_tokens(values, selection.source)
    weights = selection.weights.to(values.dtype).unsqueeze(-1).unbind(2)
    parts = [
        gather_tokens(values, source) * weight
        for source, weight in zip(selection.source.unbind(2), weights, strict=True)
    ]
    return scatter_tokens(reduce(torch.add, parts), selection.kept, values)
