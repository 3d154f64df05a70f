"""Wrong bits for training: flips at random, and what a model in training draws itself.

The latter are the errors that generation makes, which no flips resemble: they lie where the model is unsure.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flip_chances(count: int, share: float, most: float, device: torch.device) -> Tensor:
    """The chance (count,) that a bit is flipped: up to ``most`` in a ``share`` of the pictures, 0 in the others."""
    return torch.rand(count, device=device) * most * (torch.rand(count, device=device) < share)


def wrong_draws(logits: Tensor, true: Tensor, shares: Tensor, temperature: Tensor) -> Tensor:
    """Where (B, ...) a draw differs from the bits ``true``; kept for a share of the bits.

    Args:
        logits: (B, ...) of a bit being 1.
        shares, temperature: (B,).
    """
    rest = (-1, *[1] * (logits.ndim - 1))
    margins = logits.detach().float() / temperature.view(rest)
    drawn = torch.rand_like(margins) < margins.sigmoid()
    kept = torch.rand_like(margins) < shares.view(rest)
    return (drawn ^ true) & kept
