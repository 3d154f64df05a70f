"""The Triton kernel of random numbers; imported only where it runs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stepvar.kernels.triton_ops import on_device

TILE = 2048
"""Numbers of a row that a program makes."""


@triton.jit(do_not_specialize=["count", "tiles"])
def _exponential(out, words, count, tiles, B: tl.constexpr):
    """The hash of :func:`stepvar.utils.hashing.mix_`, its 23 highest bits as a uniform number, and the logarithm."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    place = (tl.program_id(0) % tiles) * B + tl.arange(0, B)
    start = tl.load(words + 2 * row).to(tl.uint32, bitcast=True)
    key = tl.load(words + 2 * row + 1).to(tl.uint32, bitcast=True)
    x = place.to(tl.uint32) + start
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = x ^ key
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    uniform = ((x >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    tl.store(out + row * count + place, -tl.log(uniform), mask=place < count)


def exponential_(draws: Tensor, words: Tensor) -> None:
    """Fills float32 (R, N) with the numbers of the rows that ``words`` (R, 2) in int32 stand for."""
    rows, count = draws.shape
    tiles = triton.cdiv(count, TILE)
    with on_device(draws):
        _exponential[(tiles * rows,)](draws, words.contiguous(), count, tiles, TILE)
