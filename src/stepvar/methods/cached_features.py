"""What a method keeps of an earlier pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import Grid, TokenMap

Resampling = Literal["area", "trilinear"]


@dataclass(frozen=True)
class CachedFeatures:
    """Values of a dense map at an earlier pass.

    Attributes:
        values: (R, N, C).
        grid: of that pass.
        first: which row of a state that holds both branches is the first of them.
    """

    values: Tensor
    grid: Grid
    first: int = 0

    @classmethod
    def of(cls, tokens: TokenMap, step: Step) -> CachedFeatures:
        """A dense map of the first R rows that run at a pass. Its grid is the map's own: a text may run as a scale."""
        return cls(tokens.features, tokens.grid, step.row_slice.start)

    def at(self, step: Step, rows: int, how: Resampling) -> Tensor:
        """The values on the grid of a later pass, of the first ``rows`` rows that run there: (rows, N, C).

        A branch that did not run at the earlier pass takes the values of the other one.

        Args:
            how: ``"area"`` averages the cells that overlap (enlarged, one or two per axis: FastVAR's restoration);
                ``"trilinear"`` interpolates between the centres of cells.
        """
        start = step.row_slice.start - self.first
        values = self.values[start : start + rows] if start >= 0 else self.values
        if len(values) < rows:
            values = self.values.repeat(-(-rows // len(self.values)), 1, 1)[:rows]
        return resample(values, self.grid, step.grid, how)


def resample(values: Tensor, source: Grid, target: Grid, how: Resampling) -> Tensor:
    """A dense map (R, N, C) on another grid: (R, N', C)."""
    volume = values.transpose(1, 2).unflatten(2, source.shape)
    corners = False if how == "trilinear" else None
    return F.interpolate(volume, size=target.shape, mode=how, align_corners=corners).flatten(2).transpose(1, 2)
