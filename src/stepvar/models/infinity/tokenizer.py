"""The bit tokenizer of the Infinity family; parameter names are those of the published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.models.infinity.config import TokenizerConfig
from stepvar.tokens import Grid, ScaleSchedule


class Conv(nn.Module):
    """A convolution under the name ``conv``."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    """A group normalisation under the name ``norm``."""

    def __init__(self, channels: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups(channels), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, config)
        self.conv1 = Conv(inputs, outputs)
        self.norm2 = Norm(outputs, config)
        self.conv2 = Conv(outputs, outputs)
        self.nin_shortcut = Conv(inputs, outputs, 1, padding=0) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        update = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return update + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next one."""

    def __init__(self, blocks: list[ResBlock], name: str, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        if resample is not None:
            self.add_module(name, resample)
        self.resample_name = name if resample is not None else ""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.get_submodule(self.resample_name)(x) if self.resample_name else x


class Middle(nn.Module):
    def __init__(self, channels: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, config)
        self.block_2 = ResBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.multipliers]
        self.conv_in = Conv(3, widths[0])
        levels, channels = [], widths[0]
        for index, width in enumerate(widths):
            blocks = [ResBlock(channels, width, config), ResBlock(width, width, config)]
            last = index == len(widths) - 1
            levels.append(Level(blocks, "downsample", None if last else Downsample(width)))
            channels = width
        self.down = nn.ModuleList(levels)
        self.mid = Middle(channels, config)
        self.norm_out = Norm(channels, config)
        self.conv_out = Conv(channels, config.code_bits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.multipliers]
        channels = widths[-1]
        self.conv_in = Conv(config.code_bits, channels)
        self.mid = Middle(channels, config)
        levels = []
        for index in reversed(range(len(widths))):
            width = widths[index]
            blocks = [ResBlock(channels if i == 0 else width, width, config) for i in range(3)]
            levels.append(Level(blocks, "upsample", Upsample(width) if index else None))
            channels = width
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = Norm(channels, config)
        self.conv_out = Conv(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


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
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

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
        return self.quantise(self.encoder(images), schedule)

    def decode(self, latent: Tensor) -> Tensor:
        """Sum of codes (B, d, H, W) -> images (B, 3, stride H, stride W) in [-1, 1]."""
        dtype = self.decoder.conv_in.conv.weight.dtype
        return self.decoder(latent.to(dtype)).clamp(-1, 1)


def latent_grid(grid: Grid, patchify: bool) -> Grid:
    """The tokenizer's grid of a token grid."""
    return Grid(grid.t, 2 * grid.h, 2 * grid.w) if patchify else grid
