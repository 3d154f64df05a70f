"""Weights in eight bits: how the embedded models are stored, so that the package stays small.

A matrix is stored as int8 under its own name, with one float32 factor per row under the name and ``SCALES``; what has
fewer than two axes or few values stays in its own format. Reading gives float32 matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stepvar.kernels.linear import int8_rows

SCALES = ".row_scales"
SMALLEST = 2048
"""Tensors of fewer values than this are not worth the loss."""


def pack(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Weights as they are to be stored.

    Each row of a matrix (the first axis; kernels of convolutions likewise) is divided by its largest magnitude over
    127 and rounded: an error of at most half a step, under 0.4 % of the row's largest value.

    Args:
        dtype: of what stays as it is.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < SMALLEST:
            packed[name] = tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()
            continue
        rows = int8_rows(tensor.flatten(1))
        packed[name] = rows.values.view(tensor.shape)
        packed[name + SCALES] = rows.scale.squeeze(1)
    return packed


def unpack(matrix: Tensor, scales: Tensor) -> Tensor:
    """A stored matrix (int8, any shape) and the factors of its rows -> float32."""
    return matrix.float() * scales.view(-1, *[1] * (matrix.ndim - 1))
