"""Rotary positions: of the text on one axis, of token maps on two that start where the text ends.

The map's rotation is the published one as it is: pair ``(i, i + D/2)`` takes its first half's angle from the row and
its second half's from the column, which is no rotation, but what the weights were trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.core.tokens import Grid
from stepvar.models.layers import Rotary

BASE = 10000.0


def text_rotary(places: Tensor, head_dim: int) -> Rotary:
    """Cosines and sines (R, 1, N, head_dim) of text tokens at ``places`` (R, N)."""
    angles = places[..., None].float() * _frequencies(head_dim, 2, places.device)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def map_rotary(positions: Tensor, grid: Grid, frame: Grid, starts: Tensor, head_dim: int) -> Rotary:
    """Cosines and sines (R, 1, N, head_dim) of the tokens of a grid.

    Args:
        positions: (R, N), row-major.
        frame: the grid in whose coordinates all scales are placed.
        starts: (R,), added to rows and columns: the place of the last text token.
    """
    starts = starts.float()[:, None]
    rows = (positions // grid.w) / grid.h * frame.h + starts
    columns = (positions % grid.w) / grid.w * frame.w + starts
    frequencies = _frequencies(head_dim, 4, positions.device)
    by_row, by_column = (places[:, None, :, None] * frequencies for places in (rows, columns))
    return (
        torch.cat([by_row.cos()] * 2 + [by_column.cos()] * 2, dim=-1),
        torch.cat([by_row.sin()] * 2 + [by_column.sin()] * 2, dim=-1),
    )


def _frequencies(head_dim: int, stride: int, device: torch.device) -> Tensor:
    """``10000 ** (-stride k / head_dim)`` for the k below ``head_dim / stride``."""
    return 1.0 / BASE ** (torch.arange(0, head_dim, stride, device=device).float() / head_dim)
