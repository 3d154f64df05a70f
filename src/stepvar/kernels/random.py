"""Random numbers by a counter: each is a hash of its place in its row, and of the two words of the row."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.kernels.ops import use_triton
from stepvar.utils.hashing import high_bits, mix_, signed

CPU_PIECE, DEVICE_PIECE = 2**15 - 1, 2**22
"""How many numbers are hashed at once, so that what is between the steps stays in the cache.

On the CPU PyTorch runs operations of this size in one thread. More threads would have to meet after each of thousands
of operations, which takes seconds where other processes use the cores, too.
"""

FORMAT = torch.float32
"""Of all random variables, whatever the default of the process is."""


def exponential(words: Tensor, count: int) -> Tensor:
    """Exp(1) variables (R, count), one kernel on a GPU.

    Args:
        words: int32 (R, 2), where a row's counter starts and its key. With the first alone all rows would be windows
            of one sequence, some of which overlap.
    """
    draws = torch.empty(len(words), count, dtype=FORMAT, device=words.device)
    if not draws.numel():
        return draws
    if count < 2**31 and use_triton(draws):
        from stepvar.kernels import triton_random

        triton_random.exponential_(draws, words)
        return draws
    starts, keys = words.split(1, dim=1)
    piece = max(1, min(count, (CPU_PIECE if words.device.type == "cpu" else DEVICE_PIECE) // len(words)))
    counter = torch.arange(piece, dtype=torch.int32, device=words.device)
    bits, spare = torch.empty(2, len(words), piece, dtype=torch.int32, device=words.device)
    for first, part in zip(range(0, count, piece), draws.split(piece, dim=1), strict=True):
        width = part.shape[1]
        value, left = bits[:, :width], spare[:, :width]
        torch.add(counter[:width], starts + signed(first), out=value)
        # 23 bits and a half are exact in float32, also near 1: no logarithm is 0 or infinite.
        part.copy_(high_bits(mix_(value, keys, left), 23, out=left)).add_(0.5).mul_(2.0**-23)
    return draws.log_().neg_()
