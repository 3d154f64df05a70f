"""The residual pyramids of a latent video as training needs them: with flipped bits, and what each pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.models.infinity_star.codes import CodePass, bits_of, codes_of, enlarge_codes, shrink


@dataclass(frozen=True)
class Pyramids:
    """Per pass the bits to predict (B, bits, t, h, w) and the clip so far that it reads (B, d, t, h, w).

    ``total`` (B, d, T, H, W) is the sum of all codes, flipped ones included.
    """

    targets: list[Tensor]
    inputs: list[Tensor]
    total: Tensor


def pyramids(latent: Tensor, clips: Sequence[Sequence[CodePass]], flips: Tensor | None = None) -> Pyramids:
    """Quantises (B, d, T, H, W) clip by clip and pass by pass.

    Args:
        flips: (B,) probability that a bit is flipped before its code is added (bitwise self-correction,
            arXiv 2412.04431): later passes learn to mend what an earlier one sampled wrongly.
    """
    targets, inputs, totals = [], [], []
    lengths = [passes[0][0].t for passes in clips]
    for target, passes in zip(latent.float().split(lengths, dim=2), clips, strict=True):
        total = torch.zeros_like(target)
        size = (target.shape[3], target.shape[4])
        for grid, count in passes:
            inputs.append(shrink(total, grid))
            bits = used = bits_of(target - total, grid, count)
            if flips is not None:
                used = bits ^ (torch.rand(bits.shape, device=bits.device) < flips.view(-1, 1, 1, 1, 1))
            targets.append(bits)
            total = total + enlarge_codes(codes_of(used), total.shape[1], size)
        totals.append(total)
    return Pyramids(targets, inputs, torch.cat(totals, dim=2))
