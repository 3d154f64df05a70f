"""What kernels fuse: normalisations, and rotary positions."""

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


class HeadsNorm(NamedTuple):
    """What happens to the queries and keys of each head before they are rotated.

    Attributes:
        kind: ``"unit"``: they get unit length; ``"rms"``: division by the root of the mean square; ``"none"``: nothing.
        q_weight, k_weight: (D,) behind the division.
        q_scale: H numbers that queries of unit length are multiplied by.
        q_factor: likewise one number, where ``kind`` is ``"none"``.
    """

    kind: Literal["none", "unit", "rms"]
    eps: float = EPS
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    q_scale: Tensor | None = None
    q_factor: float = 1.0


class Rotation(NamedTuple):
    """Rotary positions.

    Attributes:
        cos, sin: (cells, D/2) in float32, of which ``positions`` (R, N) picks rows; or with ``positions=None`` the rows
            themselves, (R or 1, N, D/2). None: no rotation. With ``halves`` they have D columns.
        halves: whether a channel's partner is ``D / 2`` away (HART) and not its neighbour.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    positions: Tensor | None = None
    halves: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The plain path, on (R, H, N, D)."""
        if self.cos is None or self.sin is None:
            return x
        cos, sin = self.cos, self.sin
        if self.positions is not None:
            cos, sin = cos[self.positions], sin[self.positions]
        return rotate(x, (cos.unsqueeze(1), sin.unsqueeze(1)), self.halves)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor], halves: bool = False) -> Tensor:
    """Turns the pairs ``(a cos - b sin, a sin + b cos)`` of (R, H, N, D).

    Args:
        rotary: cosines and sines (R or 1, 1, N, D/2) of pairs of neighbours. With ``halves`` pairs are ``D / 2`` apart,
            and there are D columns, whose halves may differ: ``(a cos - b sin, b cos' + a sin')``.
    """
    cos, sin = rotary
    if halves:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Division by the root of the mean square, computed in float32, and a weight per channel."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
