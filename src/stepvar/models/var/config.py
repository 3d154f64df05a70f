"""Shapes of the VAR family: the released sizes and whatever smaller ones have the same structure."""

from __future__ import annotations

from dataclasses import dataclass

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import CheckpointError
from stepvar.models.configs import AutoencoderConfig, ModelConfig


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """The tokenizer: a convolutional autoencoder with attention, and a codebook.

    Attributes:
        vocabulary: codes in the codebook.
        channels: channels of a code.
        base_channels: channels at full resolution (a multiple of 32, the groups of the normalisations).
        multipliers: channel multiplier per level; the stride is ``2 ** (len(multipliers) - 1)``.
        convs: convolutions that the scales share among them, after the upsampling of their codes.
        residual: share of the convolved map in the sum of the map and its convolution.
    """

    vocabulary: int = 4096
    channels: int = 32
    base_channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    convs: int = 4
    residual: float = 0.5

    def __post_init__(self) -> None:
        if self.base_channels % 32:
            raise CheckpointError(f"base_channels={self.base_channels}: must be a multiple of 32")


class SquareConfig(ModelConfig):
    """A base of the dataclasses that describe a model with a codebook, which generates squares."""

    tokenizer_type = VQConfig
    patch_nums: tuple[int, ...]
    tokenizer: VQConfig

    @property
    def outputs(self) -> int:
        """Logits per token: one for each code of the codebook."""
        return self.tokenizer.vocabulary

    def latent_size(self, grid: Grid) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent whose tokens are those of a grid."""
        return (self.tokenizer.channels, grid.h, grid.w)

    @property
    def pixels(self) -> int:
        """Side of an image."""
        return self.patch_nums[-1] * self.tokenizer.stride

    @property
    def schedule(self) -> ScaleSchedule:
        """The schedule that the model was trained for."""
        return ScaleSchedule.of([(side, side) for side in self.patch_nums], name=f"{self.pixels}x{self.pixels}")


@dataclass(frozen=True)
class VARConfig(SquareConfig):
    """The transformer, and the tokenizer that it was trained with.

    Attributes:
        depth: blocks.
        width: channels C.
        heads: attention heads.
        patch_nums: side of each scale's square grid; the learned positions tie a model to them.
        shared_adaln: whether all blocks share one projection of the class, to which each adds a table of its own.
        classes: classes, without the null class of the unconditional branch.
    """

    depth: int
    width: int
    heads: int
    patch_nums: tuple[int, ...]
    shared_adaln: bool = False
    classes: int = 1000
    tokenizer: VQConfig = VQConfig()

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise CheckpointError(f"heads={self.heads}: must divide width={self.width}")
        if not self.patch_nums or min(self.patch_nums) < 1:
            raise CheckpointError(f"patch_nums={self.patch_nums}: needs the side of each scale, 1 or more")

    @property
    def ffn_width(self) -> int:
        return 4 * self.width


PATCH_NUMS: dict[int, tuple[int, ...]] = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
"""Sides of the grids of the released models, by the side of their images."""


def _released(depth: int, pixels: int = 256, shared_adaln: bool = False) -> VARConfig:
    return VARConfig(depth, 64 * depth, depth, PATCH_NUMS[pixels], shared_adaln)


CONFIGS: dict[str, VARConfig] = {f"d{depth}": _released(depth) for depth in (16, 20, 24, 30)} | {
    "d36": _released(36, 512, shared_adaln=True)
}
"""Released sizes by variant name."""
