"""What models with VAR's tokenizer share: their own schedule of squares, the sum of codes, and the work of both."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.blocks import logit_rows
from stepvar.models.model import VARModel
from stepvar.models.var.config import SquareConfig
from stepvar.models.var.tokenizer import VQTokenizer, as_tokens, shrink
from stepvar.models.work import Work, head_work, product_work


class SummingState(Protocol):
    """A state with a latent picture (B, d, H, W)."""

    latent: Tensor
    flops: int


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
        """The picture so far, averaged down to the grid of a scale: (B, N, channels)."""
        return as_tokens(shrink(latent, step.grid))

    def accumulate(self, state: SummingState, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        """Adds the codes of the symbols (B, N), or blends of all by ``weights`` (B, N, vocabulary)."""
        if weights is None:
            codes = self.tokenizer.codes(symbols, step.grid)
        else:
            codes = self.tokenizer.soft_codes(weights, step.grid)
        state.latent += self.tokenizer.contribution(codes, step.index, step.plan.schedule)
        state.flops += self.accumulate_work(step).flops

    def embed_work(self, step: Step) -> Work:
        if step.index == 0:
            return Work()
        return product_work(step.samples * step.grid.size, self.config.tokenizer.channels, self.config.width)

    def predict_work(self, step: Step) -> Work:
        return head_work(logit_rows(step), step.grid.size, self.config.width, self.config.outputs)

    def accumulate_work(self, step: Step) -> Work:
        """The 3x3 convolution on the whole latent picture, and in front of it, if asked for, the soft codes."""
        channels, height, width = self.config.latent_size(step.plan.schedule.grids[-1])
        convolved = 2 * step.samples * height * width * 9 * channels * channels
        if not self.tokenizer.convolves(step.index, step.plan.schedule):
            convolved = 0
        soft = 2 * step.samples * step.grid.size * self.config.outputs * channels if step.plan.smooth else 0
        return Work(step.samples * height * width, products=convolved + soft, launches=4)
