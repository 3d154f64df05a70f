"""The tokenizer of the VAR family; parameter names are those of the published checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.guidance import relative_scales
from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.models.autoencoder import Decoder, Encoder, GroupNorm, Layout
from stepvar.models.precision import Policy, for_weight
from stepvar.models.tiling import decode_tiled
from stepvar.models.var.config import VQConfig

POLICY: Policy = ((r"quantize\.", "exact"), (r"", "tokenizer"))
"""Number formats of the weights: the codebook and its convolutions in float32, like the sum of codes."""


class PlainParts:
    """Convolutions and normalisations without a level of naming around them."""

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Module:
        return nn.Conv2d(inputs, outputs, kernel, stride, padding)

    def norm(self, channels: int) -> nn.Module:
        return GroupNorm(32, channels)


class Phi(nn.Conv2d):
    """Mixes a map (B, d, H, W) with its convolution, which repairs what upsampling blurred; all in float32."""

    def __init__(self, channels: int, residual: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.residual) * x + self.residual * super().forward(x)


class SharedPhis(nn.Module):
    """A few convolutions for all scales; each scale takes the one nearest to its place in the schedule."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(config.channels, config.residual) for _ in range(config.convs))


def phi_index(relative_scale: float, convs: int) -> int:
    """Which of ``convs`` convolutions serves a scale at ``relative_scale``, from 0 (first) to 1 (last).

    In float64 with this very arithmetic: with 10 scales some lie half-way between two convolutions.
    """
    edge = 1 / 3 / convs if convs == 4 else 1 / 2 / convs
    return int(np.argmin(np.abs(np.linspace(edge, 1 - edge, convs) - relative_scale)))


class Quantizer(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.channels)
        self.quant_resi = SharedPhis(config)


def shrink(latent: Tensor, grid: Grid) -> Tensor:
    """Area average of (B, d, H, W) over the cells of a grid: (B, d, h, w)."""
    size = (grid.h, grid.w)
    return latent if latent.shape[-2:] == size else F.interpolate(latent, size, mode="area")


def as_tokens(latent: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, N, d)."""
    return latent.flatten(2).transpose(1, 2)


class VQTokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to codebook indices of a residual pyramid, and back."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        layout = Layout(config.channels, config.widths, PlainParts(), attention=True)
        self.encoder = Encoder(layout)
        self.quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.quantize = Quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.decoder = Decoder(layout)

    @property
    def codebook(self) -> Tensor:
        """(vocabulary, channels) in float32."""
        return self.quantize.embedding.weight

    def codes(self, indices: Tensor, grid: Grid) -> Tensor:
        """Indices (B, N) -> codes (B, d, h, w) in float32."""
        return self._as_map(F.embedding(indices, self.codebook), grid)

    def soft_codes(self, weights: Tensor, grid: Grid) -> Tensor:
        """Weights of the codebook (B, N, vocabulary) -> blends of codes (B, d, h, w) in float32."""
        return self._as_map(weights @ self.codebook, grid)

    @staticmethod
    def _as_map(codes: Tensor, grid: Grid) -> Tensor:
        return codes.transpose(1, 2).unflatten(2, (grid.h, grid.w))

    def nearest(self, latent: Tensor) -> Tensor:
        """The nearest codes of (B, d, h, w): indices (B, N)."""
        codebook = self.codebook
        # The squared distance without the term that all codes share.
        distance = codebook.square().sum(dim=1) - 2 * as_tokens(latent) @ codebook.T
        return distance.argmin(dim=-1)

    def contribution(self, codes: Tensor, scale: int, schedule: ScaleSchedule) -> Tensor:
        """What a scale's codes (B, d, h, w) add to the latent: (B, d, H, W) in float32."""
        size = (schedule.grids[-1].h, schedule.grids[-1].w)
        if codes.shape[-2:] != size:
            codes = F.interpolate(codes, size, mode="bicubic", align_corners=False)
        index = phi_index(relative_scales(len(schedule))[scale], self.config.convs)
        return self.quantize.quant_resi.qresi_ls[index](codes)

    def quantise(self, latent: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Encoder output (B, d, H, W) -> indices (B, N) per scale, and the sum of what they add (B, d, H, W).

        Each scale takes the nearest codes of what the coarser ones left, area-averaged down.
        """
        residual, total, indices = latent.float(), torch.zeros_like(latent, dtype=torch.float32), []
        for scale, grid in enumerate(schedule):
            indices.append(self.nearest(shrink(residual, grid)))
            added = self.contribution(self.codes(indices[-1], grid), scale, schedule)
            residual, total = residual - added, total + added
        return indices, total

    def sums(self, indices: Sequence[Tensor], schedule: ScaleSchedule) -> Iterator[Tensor]:
        """The latent (B, d, H, W) after each scale, from the indices (B, N) of each."""
        codes = (self.codes(index, grid) for index, grid in zip(indices, schedule, strict=False))
        return accumulate(self.contribution(code, scale, schedule) for scale, code in enumerate(codes))

    def encode(self, images: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Images -> indices per scale, and the latent that they make."""
        return self.quantise(self.encode_latent(images), schedule)

    def encode_latent(self, images: Tensor) -> Tensor:
        """Images -> encoder output (B, d, H, W)."""
        return self.quant_conv(self.encoder(for_weight(images, self.quant_conv.weight)))

    def decode(self, latent: Tensor, tile: int | None = None) -> Tensor:
        """Latent (B, d, H, W) -> images (B, 3, stride H, stride W) in [-1, 1], in float32.

        Args:
            tile: side of the tiles in latent cells, for bounded memory (see :mod:`stepvar.models.tiling`). The deepest
                level attends to the whole latent, or to each tile alone where that level is tiled, too. None: in
                one piece.
        """
        latent = self.post_quant_conv(for_weight(latent, self.post_quant_conv.weight))
        return decode_tiled(self.decoder, latent, tile).clamp(-1, 1)
