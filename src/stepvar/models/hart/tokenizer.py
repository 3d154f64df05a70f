"""The hybrid tokenizer: VAR's, whose last scale adds its codes as they are, so that a residual can be added to them."""

from __future__ import annotations

from torch import Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.var.tokenizer import VQTokenizer


class HybridTokenizer(VQTokenizer):
    """Images (B, 3, H, W) in [-1, 1] to codebook indices and a residual at the last scale, and back."""

    def convolves(self, scale: int, schedule: ScaleSchedule) -> bool:
        return scale < len(schedule) - 1

    def contribution(self, codes: Tensor, scale: int, schedule: ScaleSchedule) -> Tensor:
        """What a scale's codes (B, d, h, w) add to the latent; the last scale's are not convolved."""
        return super().contribution(codes, scale, schedule) if self.convolves(scale, schedule) else codes

    def quantise_plain(self, latent: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """As VAR does it, with a convolution at every scale: indices (B, N) per scale and the latent."""
        return self.quantise(latent, schedule, super().contribution)

    def quantise_hybrid(self, latent: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Encoder output (B, d, H, W) -> indices (B, N) per scale, and what the scales before the last leave over.

        The continuous target of the last scale is the second less the codes of the last indices.
        """
        indices, total = self.quantise(latent, schedule)
        return indices, latent.float() - (total - self.codes(indices[-1], schedule.grids[-1]))
