"""The residual pyramids of a latent video as training needs them: with wrong bits, and what each pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.models.infinity_star.codes import CodePass, bits_of, codes_of, enlarge_codes, shrink
from training.draws import wrong_draws


@dataclass(frozen=True)
class Pyramids:
    """Per pass the bits to predict (B, bits, t, h, w) and the clip so far that it reads (B, d, t, h, w).

    ``total`` (B, d, T, H, W) is the sum of all codes, wrong ones included.
    """

    targets: list[Tensor]
    inputs: list[Tensor]
    total: Tensor


def pyramids(
    latent: Tensor,
    clips: Sequence[Sequence[CodePass]],
    flips: Tensor | None = None,
    wrong: Sequence[Tensor] | None = None,
) -> Pyramids:
    """Quantises (B, d, T, H, W) clip by clip and pass by pass.

    Args:
        flips: (B,) probability that a bit is flipped before its code is added (bitwise self-correction,
            arXiv 2412.04431): later passes learn to mend what an earlier one sampled wrongly.
        wrong: per pass which bits (B, bits, t, h, w) are to be flipped, too, such as those that a model drew wrongly.
    """
    targets: list[Tensor] = []
    inputs, totals = [], []
    lengths = [passes[0][0].t for passes in clips]
    for target, passes in zip(latent.float().split(lengths, dim=2), clips, strict=True):
        total = torch.zeros_like(target)
        size = (target.shape[3], target.shape[4])
        for grid, count in passes:
            inputs.append(shrink(total, grid))
            bits = used = bits_of(target - total, grid, count)
            if flips is not None:
                used = bits ^ (torch.rand(bits.shape, device=bits.device) < flips.view(-1, 1, 1, 1, 1))
            if wrong is not None:
                used = used ^ wrong[len(targets)]
            targets.append(bits)
            total = total + enlarge_codes(codes_of(used), total.shape[1], size)
        totals.append(total)
    return Pyramids(targets, inputs, torch.cat(totals, dim=2))


def drawn_wrongly(
    logits: Sequence[Tensor], targets: Sequence[Tensor], shares: Tensor, temperature: Tensor
) -> list[Tensor]:
    """:func:`wrong_draws` of all passes, from their logits (B, n, bits, 2), in the shape of their targets."""
    # All at once: pass by pass, a GPU would wait for the launches.
    margins = torch.cat([(part[..., 1] - part[..., 0]).transpose(1, 2).flatten(1) for part in logits], dim=1)
    true = torch.cat([target.flatten(1) for target in targets], dim=1)
    parts = wrong_draws(margins, true, shares, temperature).split([target[0].numel() for target in targets], dim=1)
    return [part.view(target.shape) for part, target in zip(parts, targets, strict=True)]
