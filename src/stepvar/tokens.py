"""The values that travel through a generation: grids, schedules, token maps, selections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A token grid of ``t`` frames, ``h`` rows and ``w`` columns; an image is ``t = 1``.

    Tokens are numbered row-major: ``index = (frame * h + row) * w + column``.
    """

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise ValueError(f"grid {self.t}x{self.h}x{self.w}: every side must be at least 1")

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.t * self.h * self.w

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.t, self.h, self.w)

    def __str__(self) -> str:
        return f"{self.h}x{self.w}" if self.t == 1 else f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class ScaleSchedule:
    """The grids of a generation from the coarsest scale to the finest.

    Attributes:
        grids: one per scale.
        name: which published schedule it is (for example ``"1M 1.5"``), for reports.
        frame: the grid in whose coordinates a model's position code places the tokens of every scale;
            None: the last grid.
        ratio: the published height / width that the grids belong to; None where there is only one shape.
        asked: the height / width that was asked for, to which ``ratio`` is the nearest; no part of equality.
    """

    grids: tuple[Grid, ...]
    name: str = ""
    frame: Grid | None = None
    ratio: float | None = None
    asked: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("a scale schedule needs at least one grid")

    @classmethod
    def of(cls, sides: Sequence[Sequence[int]], name: str = "", frame: Grid | None = None) -> ScaleSchedule:
        """Builds a schedule from ``(h, w)`` or ``(t, h, w)`` tuples."""
        return cls(tuple(Grid(*((1, *side) if len(side) == 2 else side)) for side in sides), name, frame)

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, index: int) -> Grid:
        return self.grids[index]

    def __iter__(self) -> Iterator[Grid]:
        return iter(self.grids)

    @property
    def size(self) -> int:
        """Number of tokens over all scales."""
        return sum(grid.size for grid in self.grids)

    def late_scales(self, share: float = 0.5) -> int:
        """How many scales, counted from the end, together hold more than ``share`` of the tokens (at least 1)."""
        held = 0
        for count, grid in enumerate(reversed(self.grids), start=1):
            held += grid.size
            if held > share * self.size:
                return count
        return len(self.grids)


@dataclass(frozen=True)
class TokenMap:
    """Tokens of one scale, all of them or some.

    Attributes:
        features: (R, N, C). R rows: the samples' conditional branches, then their unconditional ones if there are any.
        positions: (R, N) int64, each token's row-major index in ``grid``, ascending.
        grid: the grid of the scale, also when only some of its tokens are present.
    """

    features: Tensor
    positions: Tensor
    grid: Grid

    @classmethod
    def dense(cls, features: Tensor, grid: Grid) -> TokenMap:
        """All tokens of ``grid``: features (R, grid.size, C)."""
        positions = torch.arange(grid.size, device=features.device)
        return cls(features, positions.expand(features.shape[0], -1), grid)

    @property
    def is_dense(self) -> bool:
        return self.features.shape[1] == self.grid.size

    def with_features(self, features: Tensor) -> TokenMap:
        return replace(self, features=features)

    def take(self, kept: Tensor) -> TokenMap:
        """The tokens at the indices ``kept`` (R, K) along N."""
        return replace(self, features=gather_tokens(self.features, kept), positions=self.positions.gather(1, kept))


@dataclass(frozen=True)
class Selection:
    """Which tokens of a dense map are computed, and which of those stands in for each token.

    Attributes:
        kept: (R, K) int64, ascending indices of the kept tokens.
        source: (R, N) int64, for each token of the map the index into ``kept`` of its nearest kept token.
    """

    kept: Tensor
    source: Tensor

    def repeat(self, times: int) -> Selection:
        """The same selection for each of ``times`` guidance branches."""
        return self if times == 1 else Selection(self.kept.repeat(times, 1), self.source.repeat(times, 1))


def gather_tokens(features: Tensor, index: Tensor) -> Tensor:
    """features (R, N, C) at index (R, M) -> (R, M, C)."""
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
