"""A counter-based hash of 32 bits, evaluated on the device: the same bits on all of them, and no state."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def signed(value: int) -> int:
    """The int32 with the low 32 bits of a whole number."""
    return (value + 2**31) % 2**32 - 2**31


def mix_(value: Tensor, key: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
    """Hashes int32 numbers in place, one to one, and returns them.

    Args:
        value: any shape.
        key: int32 that broadcasts to it; each makes another hash, not the same one shifted.
        spare: memory of the size of ``value``, for callers that hash piece by piece.
    """
    spare = torch.empty_like(value) if spare is None else spare
    _fold_(value, 16, spare).mul_(0x7FEB352D)  # int32 products wrap, which is what is wanted
    if key is not None:
        value.bitwise_xor_(key)
    _fold_(value, 15, spare).mul_(signed(0x846CA68B))
    return _fold_(value, 16, spare)


def high_bits(value: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """The highest ``count`` bits of int32 numbers, as numbers from 0 on."""
    # The shift of signed numbers repeats the sign.
    return torch.bitwise_right_shift(value, 32 - count, out=out).bitwise_and_((1 << count) - 1)


def _fold_(value: Tensor, shift: int, spare: Tensor) -> Tensor:
    return value.bitwise_xor_(high_bits(value, 32 - shift, out=spare))
