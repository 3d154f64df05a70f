"""The residual pyramid of a latent as training needs it: with wrong bits and what each scale sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity.tokenizer import BitTokenizer, resize


@dataclass(frozen=True)
class Pyramid:
    """Per scale the bits to predict (B, d, h, w) and the sum of codes (B, d, H, W) behind it."""

    targets: list[Tensor]
    sums: list[Tensor]


@torch.no_grad()
def pyramid(
    tokenizer: BitTokenizer,
    latent: Tensor,
    schedule: ScaleSchedule,
    scales: int | None = None,
    flips: Tensor | None = None,
    wrong: Sequence[Tensor] | None = None,
) -> Pyramid:
    """Quantises (B, d, H, W) scale by scale.

    Args:
        scales: how many scales from the first; None: all.
        flips: (B,) probability that a bit is flipped before its code is added (bitwise self-correction,
            arXiv 2412.04431): later scales learn to mend what an earlier one sampled wrongly.
        wrong: per scale which bits (B, d, h, w) are to be flipped, too, such as those that a model drew wrongly.
    """
    residual = latent.float()
    total = torch.zeros_like(residual)
    size = (latent.shape[-2], latent.shape[-1])
    targets, sums = [], []
    for index, grid in enumerate(schedule.grids[:scales]):
        here = residual
        if (grid.h, grid.w) != size:
            here = F.interpolate(residual, size=(grid.h, grid.w), mode="area")
        bits = here > 0
        used = bits
        if flips is not None:
            used = used ^ (torch.rand(bits.shape, device=bits.device) < flips[:, None, None, None])
        if wrong is not None:
            used = used ^ wrong[index]
        codes = resize(tokenizer.codes(used), size)
        residual, total = residual - codes, total + codes
        targets.append(bits)
        sums.append(total)
    return Pyramid(targets, sums)


def inputs(sums: list[Tensor], schedule: ScaleSchedule, scales: int) -> Tensor:
    """What the transformer reads for the scales 1 .. ``scales`` - 1: (B, tokens, d)."""
    tokens = [
        resize(total, (grid.h, grid.w)).flatten(2)
        for total, grid in zip(sums[: scales - 1], schedule.grids[1:scales], strict=True)
    ]
    return torch.cat(tokens, dim=2).transpose(1, 2)
