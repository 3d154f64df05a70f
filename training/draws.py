"""What a model in training draws itself: the errors that generation makes, which no flips at random resemble.

Those lie where the model is unsure.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
