"""The normalisations that kernels fuse with what stands before them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


class Norm(NamedTuple):
    """A normalisation of tokens (R, N, C).

    Attributes:
        kind: ``"layer"``: mean and variance; ``"rms"``: the root of the mean square, which needs a weight.
        weight, bias: (C,), or None.
        scale, shift: (R, 1, C), a modulation ``norm(x) * (1 + scale) + shift`` per row, or None.
    """

    kind: Literal["layer", "rms"]
    eps: float = EPS
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The plain path."""
        if self.kind == "rms":
            assert self.weight is not None
            x = rms_norm(x, self.weight, self.eps)
        else:
            x = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return x if self.scale is None or self.shift is None else torch.addcmul(self.shift, x, 1 + self.scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Division by the root of the mean square, computed in float32, and a weight per channel."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
