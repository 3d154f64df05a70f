"""What models with VAR's tokenizer share: their own schedule of squares, and the sum of codes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.model import VARModel
from stepvar.models.var.config import SquareConfig
from stepvar.models.var.tokenizer import VQTokenizer, as_tokens, shrink


class SummingState(Protocol):
    """A state with an accumulated latent (B, d, H, W)."""

    latent: Tensor


class CodebookModel(VARModel):
    """Base of the models that predict indices of a codebook, without attention to a text."""

    sublayers = ("self", "ffn")
    config: SquareConfig
    tokenizer: VQTokenizer

    def schedule(self, height_over_width: float = 1.0, resolution: str | None = None) -> ScaleSchedule:
        """The model's own schedule: no other was published.

        Raises:
            UsageError: if another shape or size is asked for.
        """
        schedule = self.config.schedule
        if height_over_width != 1.0:
            raise UsageError(f"aspect ratio (height / width) {height_over_width:g}: this model draws squares only")
        if resolution not in (None, schedule.name):
            raise UsageError(f"resolution {resolution!r}: this model draws {schedule.name} only")
        return schedule

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """The accumulated latent, averaged down to the grid of a scale: (B, N, channels)."""
        return as_tokens(shrink(latent, step.grid))

    def accumulate(self, state: SummingState, indices: Tensor, step: Step, weights: Tensor | None = None) -> None:
        """Adds the codes of the indices (B, N), or blends of all by ``weights`` (B, N, vocabulary)."""
        if weights is None:
            codes = self.tokenizer.codes(indices, step.grid)
        else:
            codes = self.tokenizer.soft_codes(weights, step.grid)
        state.latent += self.tokenizer.contribution(codes, step.index, step.settings.schedule)
