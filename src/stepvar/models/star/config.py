"""Shapes of the STAR family: the released sizes and whatever smaller ones have the same structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stepvar.errors import CheckpointError
from stepvar.models.var.config import PATCH_NUMS as VAR_PATCH_NUMS
from stepvar.models.var.config import SquareConfig, VQConfig

PATCH_NUMS = VAR_PATCH_NUMS | {1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)}
"""Sides of the grids of the released models, by the side of their images."""

SamplerName = Literal["new", "1024"]


@dataclass(frozen=True)
class STARConfig(SquareConfig):
    """The transformer, and the tokenizer that it was trained with.

    Attributes:
        depth: blocks.
        width: channels C.
        heads: attention heads.
        patch_nums: side of each scale's square grid.
        text_channels: channels of the text features.
        text_maxlen: most text tokens per prompt.
        rope_theta: of the frequencies of rotary positions.
        rope_span: the coordinate of the last row and column of every grid; that of the first is 0.
        head_norm: whether features are normalised before the head. No weight tells.
        first_row_cross: whether the attention to the text updates all rows as it does the first one (the first prompt),
            as the published code does; else each row attends to its own prompt.
        sampler: how the scales from ``sampler_first`` on are sampled in several steps, by the name that the published
            code has for it (see :mod:`stepvar.models.star.sampler`); None: in one step, like the others.
        sampler_first: the first of these scales, counted from 0.
    """

    depth: int
    width: int
    heads: int
    patch_nums: tuple[int, ...]
    tokenizer: VQConfig = field(default_factory=VQConfig)
    text_channels: int = 1024
    text_maxlen: int = 77
    rope_theta: float = 10000.0
    rope_span: float = 64.0
    head_norm: bool = True
    first_row_cross: bool = False
    sampler: SamplerName | None = None
    sampler_first: int = 9

    def __post_init__(self) -> None:
        self.check_heads(4)
        if len(self.patch_nums) < 2 or min(self.patch_nums) < 1 or self.patch_nums[0] != 1:
            raise CheckpointError(f"patch_nums={self.patch_nums}: needs the side of each scale, of the first one 1")
        if not self.rope_theta > 1:
            raise CheckpointError(f"rope_theta={self.rope_theta:g}: must be above 1")
        if self.sampler is not None and not 0 < self.sampler_first < len(self.patch_nums):
            raise CheckpointError(
                f"sampler_first={self.sampler_first}: must be a scale from 1 to {len(self.patch_nums) - 1}"
            )

    @property
    def ffn_width(self) -> int:
        return 4 * self.width


def _released(depth: int, pixels: int, sampler: SamplerName | None = None) -> STARConfig:
    return STARConfig(depth, 64 * depth, depth, PATCH_NUMS[pixels], sampler=sampler)


CONFIGS: dict[str, STARConfig] = {
    "d16-256": _released(16, 256),
    "d30-256": _released(30, 256),
    "d30-512": _released(30, 512),
    "d30-1024": _released(30, 1024),
    "d30-1024-sampler": _released(30, 1024, "1024"),
}
"""Released sizes by variant name."""
