"""From the kept tokens back to a dense map."""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from stepvar.core.tokens import Grid, Selection, gather_tokens, scatter_tokens

Propagated = Literal["state", "update"]


FINEST = 64
"""Largest denominator of a temporal weight."""


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


def spread(values: Tensor, selection: Selection) -> Tensor:
    """Values (R, K, C) of the kept tokens at every token (R, N, C): each takes its source's, or a blend of several."""
    if selection.weights is None:
        return gather_tokens(values, selection.source)
    weights = selection.weights.to(values.dtype).unsqueeze(-1).unbind(2)
    parts = [
        gather_tokens(values, source) * weight
        for source, weight in zip(selection.source.unbind(2), weights, strict=True)
    ]
    return scatter_tokens(reduce(torch.add, parts), selection.kept, values)
