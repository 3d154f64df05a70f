"""Shapes of the Infinity family: the released sizes and whatever smaller ones have the same structure."""

from __future__ import annotations

from dataclasses import dataclass

from stepvar.core.tokens import Grid
from stepvar.errors import CheckpointError
from stepvar.models.configs import AutoencoderConfig, ModelConfig


@dataclass(frozen=True)
class TokenizerConfig(AutoencoderConfig):
    """The bit tokenizer: a convolutional autoencoder and a quantiser without weights.

    Attributes:
        code_bits: latent channels d; each is one bit per cell.
        base_channels: channels at full resolution.
        multipliers: channel multiplier per level; the stride is ``2 ** (len(multipliers) - 1)``.
        norm_groups: groups of the group normalisations; None: 32, or 24 where 32 does not divide the channels.
    """

    code_bits: int = 32
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    norm_groups: int | None = None

    def groups(self, channels: int) -> int:
        if self.norm_groups is not None:
            return self.norm_groups
        return 32 if channels % 32 == 0 or channels % 24 else 24


@dataclass(frozen=True)
class InfinityConfig(ModelConfig):
    """The transformer, and the tokenizer that it was trained with.

    Attributes:
        depth: blocks; ``block_chunks`` only groups them in the names of the weights.
        width: channels C.
        heads: attention heads.
        text_channels: channels of the text features (a multiple of 128).
        text_maxlen: most text tokens per prompt, and rows of the learned null text.
        patchify: whether a token carries a 2x2 block of latent cells (the layout of the 8B model).
        level_every_chunk: whether the level embedding is added before every chunk, not only the first.
        resolution: name of the native schedule ("0.06M", "0.25M", "0.60M", "1M").
        levels: rows of the level embedding, one per scale: no schedule may have more scales.
    """

    tokenizer_type = TokenizerConfig
    depth: int
    width: int
    heads: int
    block_chunks: int
    tokenizer: TokenizerConfig
    text_channels: int = 2048
    text_maxlen: int = 512
    patchify: bool = False
    level_every_chunk: bool = False
    levels: int = 15
    resolution: str = "1M"

    def __post_init__(self) -> None:
        if self.depth % self.block_chunks:
            raise CheckpointError(f"block_chunks={self.block_chunks}: must divide depth={self.depth}")
        self.check_heads(4)
        if self.text_channels % 128:
            raise CheckpointError(f"text_channels={self.text_channels}: must be a multiple of 128")

    @property
    def pool_heads(self) -> int:
        """Heads of the attention that pools the text into the first token."""
        return self.text_channels // (128 if self.width <= 4096 else 64)

    @property
    def ffn_width(self) -> int:
        return 256 * round(4 * self.width / 256)

    @property
    def token_bits(self) -> int:
        """Bits that one token predicts."""
        return self.tokenizer.code_bits * (4 if self.patchify else 1)

    @property
    def outputs(self) -> int:
        """Logits per token: two for each bit."""
        return 2 * self.token_bits

    def latent_size(self, grid: Grid) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent whose tokens are those of a grid."""
        cells = 2 if self.patchify else 1
        return (self.tokenizer.code_bits, cells * grid.h, cells * grid.w)

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return self.tokenizer.stride * (2 if self.patchify else 1)


_PATCHIFIED = TokenizerConfig(code_bits=14, multipliers=(1, 2, 4, 4))

CONFIGS: dict[str, InfinityConfig] = {
    "125m": InfinityConfig(12, 768, 8, 4, TokenizerConfig(16), resolution="0.06M"),
    "2b": InfinityConfig(32, 2048, 16, 8, TokenizerConfig(32)),
    "8b": InfinityConfig(40, 3584, 28, 8, _PATCHIFIED, patchify=True),
    "8b-512": InfinityConfig(40, 3584, 28, 8, _PATCHIFIED, patchify=True, resolution="0.25M"),
}
"""Released sizes by variant name."""
