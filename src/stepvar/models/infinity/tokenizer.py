"""The bit tokenizer of the Infinity family; parameter names are those of the published checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.autoencoder import Decoder, Encoder, GroupNorm, Layout
from stepvar.models.infinity.config import TokenizerConfig
from stepvar.models.precision import Policy, for_weight
from stepvar.models.tiling import decode_tiled

POLICY: Policy = ((r"", "tokenizer"),)
"""Number formats of the weights. The quantiser has none: it works in float32."""


@dataclass(frozen=True)
class WrappedParts:
    """Convolutions and normalisations under the names ``conv`` and ``norm``."""

    config: TokenizerConfig

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Module:
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs, kernel, stride, padding)))

    def norm(self, channels: int) -> nn.Module:
        return nn.Sequential(OrderedDict(norm=GroupNorm(self.config.groups(channels), channels)))


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling of (B, d, H, W) with half-pixel centres and no antialiasing."""
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


class BitTokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to bits of a residual pyramid, and back."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        layout = Layout(config.code_bits, config.widths, WrappedParts(config))
        self.encoder = Encoder(layout)
        self.decoder = Decoder(layout)

    def codes(self, bits: Tensor) -> Tensor:
        """Bits (0 or 1) -> codes in float32: ``+-1 / sqrt(d)``."""
        return (2.0 * bits.float() - 1.0) * self.config.code_bits**-0.5

    def quantise(self, latent: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Encoder output (B, d, H, W) -> bits (B, d, h, w) per scale, and the sum of their codes (B, d, H, W).

        Each scale takes the signs of what the coarser ones left: area-averaged down, and resampled bilinearly up.
        """
        residual, total, bits = latent.float(), torch.zeros_like(latent, dtype=torch.float32), []
        size = (latent.shape[-2], latent.shape[-1])
        for grid in schedule:
            here = residual
            if (grid.h, grid.w) != size:
                here = F.interpolate(residual, size=(grid.h, grid.w), mode="area")
            bits.append(here > 0)
            codes = resize(self.codes(bits[-1]), size)
            residual, total = residual - codes, total + codes
        return bits, total

    def encode(self, images: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Images -> bits per scale and the sum of codes; ``schedule`` is in latent cells."""
        return self.quantise(self.encode_latent(images), schedule)

    def encode_latent(self, images: Tensor) -> Tensor:
        """Images -> encoder output (B, d, H, W)."""
        return self.encoder(for_weight(images, self.encoder.get_parameter("conv_in.conv.weight")))

    def decode(self, latent: Tensor, tile: int | None = None) -> Tensor:
        """Sum of codes (B, d, H, W) -> images (B, 3, stride H, stride W) in [-1, 1], in float32.

        Args:
            tile: side of the tiles in latent cells, for bounded memory (see :mod:`stepvar.models.tiling`). None: in
                one piece.
        """
        latent = for_weight(latent, self.decoder.get_parameter("conv_in.conv.weight"))
        return decode_tiled(self.decoder, latent, tile).clamp(-1, 1)
