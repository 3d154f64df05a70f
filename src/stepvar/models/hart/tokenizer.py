"""The hybrid tokenizer: VAR's, whose last scale adds its codes as they are, so that a residual can be added to them."""

from __future__ import annotations

from torch import Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.var.tokenizer import VQTokenizer


class HybridTokenizer(VQTokenizer):
    """Images (B, 3, H, W) in [-1, 1] to codebook indices, and back.

    What the indices leave over is a residual at the last scale: the latent less their sum.
    """

    def contribution(self, codes: Tensor, scale: int, schedule: ScaleSchedule) -> Tensor:
        """What a scale's codes (B, d, h, w) add to the latent; the last scale's are not convolved."""
        return codes if scale == len(schedule) - 1 else super().contribution(codes, scale, schedule)
