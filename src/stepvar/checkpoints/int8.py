"""Weights in eight bits: how the embedded models are stored, so that the package stays small.

A matrix is stored as int8 under its own name, with one float32 factor per row under the name and ``SCALES``; what has
fewer than two axes or few values stays in its own format. Reading gives float32 matrices: nothing behind it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

SCALES = ".row_scales"
SMALLEST = 2048
"""Tensors of fewer values than this are not worth the loss."""
_MOST = 127


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
        rows = tensor.float().flatten(1)
        scales = (rows.abs().amax(dim=1) / _MOST).clamp(min=torch.finfo(torch.float32).tiny)
        quotients = (rows / scales[:, None]).round().clamp(-_MOST, _MOST)
        packed[name] = quotients.to(torch.int8).view(tensor.shape)
        packed[name + SCALES] = scales
    return packed


class Unpacked(Mapping[str, Tensor]):
    """Stored weights as they were before packing."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored = stored
        self._names = tuple(name for name in stored if not name.endswith(SCALES))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._stored[name]
        if name + SCALES not in self._stored:
            return tensor
        scales = self._stored[name + SCALES]
        return tensor.float() * scales.view(-1, *[1] * (tensor.ndim - 1))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unpacked(stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Stored weights, read through :class:`Unpacked` if some of them are packed."""
    return Unpacked(stored) if any(name.endswith(SCALES) for name in stored) else stored
