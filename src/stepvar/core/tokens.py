"""The values that travel through a generation: grids, schedules, token maps, selections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from stepvar.kernels import ops

KVScope = Literal["all", "clip", "none"]


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
    """The passes of a generation through a model, in order: the grids of an image from coarse to fine.

    An image runs one pass per scale. A video is a row of clips, each a pyramid of its own (the first one a still
    image), and some models run a scale several times before they go on to the next.

    Attributes:
        grids: one per pass.
        name: which published schedule it is (for example ``"1M 1.5"``), for reports.
        frame: the grid in whose coordinates a model's position code places the tokens of every scale;
            None: the last grid.
        ratio: the published height / width that the grids belong to; None where there is only one shape.
        asked: the height / width that was asked for, to which ``ratio`` is the nearest; no part of equality.
        clips: the clip of each pass, from 0; empty: all passes belong to one.
        scales: the scale of each pass within its clip, from 0; repetitions of a scale share its number. Empty: each
            pass is a scale of its own.
        kv_scope: which keys and values a pass attends to beside its own: those of ``"all"`` earlier passes, those
            that the last pass of the ``"clip"`` before left, or ``"none"``: then there is no cache.
    """

    grids: tuple[Grid, ...]
    name: str = ""
    frame: Grid | None = None
    ratio: float | None = None
    asked: float | None = field(default=None, compare=False)
    clips: tuple[int, ...] = ()
    scales: tuple[int, ...] = ()
    kv_scope: KVScope = "all"

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("a scale schedule needs at least one grid")
        for name in ("clips", "scales"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.grids):
                raise ValueError(f"{name}: needs no value, or one for each of the {len(self.grids)} passes")

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
        """Number of tokens over all passes."""
        return sum(grid.size for grid in self.grids)

    def clip(self, index: int) -> int:
        """The clip of a pass."""
        return self.clips[index] if self.clips else 0

    def scale(self, index: int) -> int:
        """The scale of a pass within its clip."""
        return self.scales[index] if self.scales else index

    def scales_from_end(self, index: int) -> int:
        """The scale of a pass counted from the end of its clip: 1 is the finest."""
        return self.scale_counts[self.clip(index)] - self.scale(index)

    @cached_property
    def scale_counts(self) -> tuple[int, ...]:
        """How many scales each clip has, without repetitions."""
        counts: dict[int, int] = {}
        for index in range(len(self.grids)):
            clip = self.clip(index)
            counts[clip] = max(counts.get(clip, 0), self.scale(index) + 1)
        return tuple(counts[clip] for clip in sorted(counts))

    @property
    def clip_slices(self) -> tuple[slice, ...]:
        """Where the frames of each clip lie in the latent video."""
        lengths = {self.clip(index): grid.t for index, grid in enumerate(self.grids)}
        ends = list(accumulate(lengths[clip] for clip in sorted(lengths)))
        return tuple(slice(start, end) for start, end in pairwise([0, *ends]))

    def late_scales(self, share: float = 0.5) -> int:
        """How many scales of the last clip, counted from its end, hold more than ``share`` of its tokens (at least 1).

        A scale that runs several times counts as often.
        """
        sizes = [0] * self.scale_counts[-1]
        for index, grid in enumerate(self.grids):
            if self.clip(index) == len(self.scale_counts) - 1:
                sizes[self.scale(index)] += grid.size
        held = 0
        for count, size in enumerate(reversed(sizes), start=1):
            held += size
            if held > share * sum(sizes):
                return count
        return len(sizes)


@dataclass(frozen=True)
class TokenMap:
    """Tokens of one scale, all of them or some.

    Attributes:
        features: (R, N, C). R rows: the samples' conditional branches, then their unconditional ones if there are any.
        positions: (R, N) int64, each token's row-major index in ``grid``, ascending.
        grid: the grid of the scale, also when only some of its tokens are present.
        counts: of a map that joins those of several scales, how many tokens are of each; positions are then those in
            the grid of their own scale, and ``grid`` is the last one. Empty: the map is of one scale.
    """

    features: Tensor
    positions: Tensor
    grid: Grid
    counts: tuple[int, ...] = ()

    @classmethod
    def dense(cls, features: Tensor, grid: Grid) -> TokenMap:
        """All tokens of ``grid``: features (R, grid.size, C)."""
        positions = torch.arange(grid.size, device=features.device)
        return cls(features, positions.expand(features.shape[0], -1), grid)

    @classmethod
    def joined(cls, maps: Sequence[TokenMap]) -> TokenMap:
        """The tokens of several scales in a row, to run through the blocks together."""
        features, positions = (
            torch.cat(parts, dim=1) for parts in ([each.features for each in maps], [each.positions for each in maps])
        )
        return cls(features, positions, maps[-1].grid, tuple(each.features.shape[1] for each in maps))

    def parts(self, maps: Sequence[TokenMap]) -> list[TokenMap]:
        """The maps that were joined, with the features of this one."""
        features = self.features.split(self.counts, dim=1)
        return [each.with_features(own) for each, own in zip(maps, features, strict=True)]

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
        source: (R, N) int64, for each token of the map the index into ``kept`` of its nearest kept token; or
            (R, N, M), of the M tokens that are blended.
        weights: (R, N, M) in float32, the share of each of these; None where there is one.
    """

    kept: Tensor
    source: Tensor
    weights: Tensor | None = None

    def repeat(self, times: int) -> Selection:
        """The same selection for each of ``times`` guidance branches."""
        if times == 1:
            return self

        def repeated(part: Tensor) -> Tensor:
            return part.repeat(times, *[1] * (part.ndim - 1))

        weights = None if self.weights is None else repeated(self.weights)
        return Selection(repeated(self.kept), repeated(self.source), weights)


def gather_tokens(features: Tensor, index: Tensor) -> Tensor:
    """features (R, N, C) at index (R, M) -> (R, M, C)."""
    return ops.gather_rows(features, index)


def scatter_tokens(features: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """features (R, N, C) with values (R, M, C) at index (R, M): (R, N, C), a new tensor."""
    return features.scatter(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]), values)
