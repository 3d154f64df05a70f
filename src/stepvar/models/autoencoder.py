"""The convolutional autoencoder that the families' tokenizers are built of.

The families name the same layers differently; each brings its own :class:`Parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.kernels import decoder
from stepvar.kernels.decoder import Moments


class Parts(Protocol):
    """Makes convolutions and normalisations, with a family's names of the weights inside."""

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Module: ...

    def norm(self, channels: int) -> nn.Module: ...


class GroupNorm(nn.GroupNorm):
    """Group normalisation, its statistics in float32, that can also be given the statistics of another input."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # Tracing cannot read the variable, and would cut the graph at every normalisation. Only tiles share statistics,
        # and they call the decoder's levels, which stay eager where a whole decoder is compiled.
        shared = None if torch.compiler.is_compiling() else SHARED_STATISTICS.get()
        if shared is None:
            return super().forward(x)
        if shared.recording:
            shared.moments[self] = decoder.group_moments(x, self.num_groups)
        return decoder.apply_group_norm(x, shared.moments[self], self.weight, self.bias, self.eps, silu=False)


@dataclass
class SharedStatistics:
    """Statistics of the group normalisations of one decoding.

    Attributes:
        recording: whether the statistics of the next inputs are recorded.
        moments: by module, mean and variance (B, groups).
    """

    recording: bool = True
    moments: dict[nn.Module, Moments] = field(default_factory=dict)


SHARED_STATISTICS: ContextVar[SharedStatistics | None] = ContextVar("SHARED_STATISTICS", default=None)
"""What all normalisations of the running thread take their statistics from; None: each from its own input."""


@dataclass(frozen=True)
class Layout:
    """The shape of an autoencoder.

    Attributes:
        latent: channels of the latent.
        widths: channels of each level, the first at full resolution.
        parts: see :class:`Parts`.
        attention: whether the coarsest level and the middle attend.
    """

    latent: int
    widths: tuple[int, ...]
    parts: Parts
    attention: bool = False


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, parts: Parts) -> None:
        super().__init__()
        self.norm1 = parts.norm(inputs)
        self.conv1 = parts.conv(inputs, outputs)
        self.norm2 = parts.norm(outputs)
        self.conv2 = parts.conv(outputs, outputs)
        self.nin_shortcut = parts.conv(inputs, outputs, 1, padding=0) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        update = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return update + (x if self.nin_shortcut is None else self.nin_shortcut(x))

    def fused(self, x: Tensor, moments: Moments) -> tuple[Tensor, Moments]:
        """As :meth:`forward` on a map in channels_last and its moments; gives its result and the moments of that.

        Biases and the residual are added where the next operation reads the map anyway.
        """
        norm1, norm2, conv1, conv2 = (inner(one) for one in (self.norm1, self.norm2, self.conv1, self.conv2))
        x1 = decoder.apply_group_norm(x, moments, norm1.weight, norm1.bias, norm1.eps)
        x1 = F.conv2d(x1, conv1.weight, None, padding=1)
        between = decoder.group_moments(x1, norm2.num_groups, conv1.bias)
        x1 = decoder.apply_group_norm(x1, between, norm2.weight, norm2.bias, norm2.eps, conv_bias=conv1.bias)
        x1, bias = F.conv2d(x1, conv2.weight, None, padding=1), conv2.bias
        if self.nin_shortcut is not None:
            shortcut = inner(self.nin_shortcut)
            x, bias = F.conv2d(x, shortcut.weight, None), bias + shortcut.bias
        return decoder.add_bias_residual(x1, bias, x, norm2.num_groups)


def inner(module: nn.Module) -> Any:
    """The convolution or normalisation itself, where a family has a level of naming around it."""
    if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
        return module
    found = [child for child in module.modules() if isinstance(child, (nn.Conv2d, nn.GroupNorm))]
    assert len(found) == 1, f"{type(module).__name__} wraps {len(found)} layers"
    return found[0]


class PixelAttention(nn.Module):
    """One head of attention over all pixels, as a residual update."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.norm = parts.norm(channels)
        self.qkv = parts.conv(channels, 3 * channels, 1, padding=0)
        self.proj_out = parts.conv(channels, channels, 1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + self.proj_out(seen.unflatten(2, x.shape[-2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.conv = parts.conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.conv = parts.conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def fused(self, x: Tensor, groups: int) -> tuple[Tensor, Moments]:
        """As :meth:`forward` on a map in channels_last, and the moments of the result."""
        conv = inner(self.conv)
        return decoder.add_bias_residual(
            F.conv2d(decoder.upsample_nearest2x(x), conv.weight, None, padding=1), conv.bias, None, groups
        )


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next one."""

    def __init__(
        self, blocks: list[ResBlock], attention: list[PixelAttention], name: str, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attention)
        if resample is not None:
            self.add_module(name, resample)
        self.resample_name = name if resample is not None else ""

    def blocks(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x

    def resample(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.resample_name)(x) if self.resample_name else x

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class Middle(nn.Module):
    def __init__(self, channels: int, layout: Layout) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, layout.parts)
        self.attn_1 = PixelAttention(channels, layout.parts) if layout.attention else None
        self.block_2 = ResBlock(channels, channels, layout.parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(x if self.attn_1 is None else self.attn_1(x))


def _level(
    inputs: int, index: int, count: int, layout: Layout, name: str, resample: type[Downsample | Upsample] | None
) -> Level:
    """``count`` residual blocks of a level, and attention after each of them on the coarsest one."""
    width, parts = layout.widths[index], layout.parts
    blocks = [ResBlock(inputs if i == 0 else width, width, parts) for i in range(count)]
    attends = layout.attention and index == len(layout.widths) - 1
    attention = [PixelAttention(width, parts) for _ in blocks] if attends else []
    return Level(blocks, attention, name, resample(width, parts) if resample else None)


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> (B, latent, H / stride, W / stride)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        widths, parts = layout.widths, layout.parts
        self.conv_in = parts.conv(3, widths[0])
        levels = []
        for index in range(len(widths)):
            resample = Downsample if index < len(widths) - 1 else None
            levels.append(_level(widths[max(index - 1, 0)], index, 2, layout, "downsample", resample))
        self.down = nn.ModuleList(levels)
        self.mid = Middle(widths[-1], layout)
        self.norm_out = parts.norm(widths[-1])
        self.conv_out = parts.conv(widths[-1], layout.latent)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, latent, h, w) -> images (B, 3, stride h, stride w).

    It can be cut in two at a level of ``up``: :meth:`coarse` and :meth:`fine`, one after the other, are the whole.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        widths, parts = layout.widths, layout.parts
        self.widths = widths
        self.conv_in = parts.conv(layout.latent, widths[-1])
        self.mid = Middle(widths[-1], layout)
        levels, channels = [], widths[-1]
        for index in reversed(range(len(widths))):
            resample = Upsample if index else None
            levels.append(_level(channels, index, 3, layout, "upsample", resample))
            channels = widths[index]
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = parts.norm(channels)
        self.conv_out = parts.conv(channels, 3)

    def coarse(self, x: Tensor, last: int) -> Tensor:
        """From the latent to the blocks of level ``last``; the number of levels: nothing at all."""
        if last == len(self.up):
            return x
        x = self.mid(self.conv_in(x))
        for index in reversed(range(last + 1, len(self.up))):
            x = self.up[index](x)
        return self._level(last).blocks(x)

    def fine(self, x: Tensor, last: int) -> Tensor:
        """From what :meth:`coarse` gives to the image."""
        x = self.mid(self.conv_in(x)) if last == len(self.up) else self._level(last).resample(x)
        for index in reversed(range(last)):
            x = self.up[index](x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def fused(self, x: Tensor) -> Tensor:
        """As :meth:`forward` on a latent in channels_last, with the kernels of :mod:`stepvar.kernels.decoder`."""
        norm_out = inner(self.norm_out)

        def attend(attention: PixelAttention, x: Tensor) -> tuple[Tensor, Moments]:
            x = attention(x).contiguous(memory_format=torch.channels_last)
            return x, decoder.group_moments(x, inner(attention.norm).num_groups)

        x = self.conv_in(x).contiguous(memory_format=torch.channels_last)
        moments = decoder.group_moments(x, inner(self.mid.block_1.norm1).num_groups)
        x, moments = self.mid.block_1.fused(x, moments)
        if self.mid.attn_1 is not None:
            x, moments = attend(self.mid.attn_1, x)
        x, moments = self.mid.block_2.fused(x, moments)
        for index in reversed(range(len(self.up))):
            level = self._level(index)
            for place, block in enumerate(level.block):
                assert isinstance(block, ResBlock)
                x, moments = block.fused(x, moments)
                if level.attn:
                    attention = level.attn[place]
                    assert isinstance(attention, PixelAttention)
                    x, moments = attend(attention, x)
            if level.resample_name:
                upsample = level.get_submodule(level.resample_name)
                assert isinstance(upsample, Upsample)
                x, moments = upsample.fused(x, moments[0].shape[1])
        return self.conv_out(decoder.apply_group_norm(x, moments, norm_out.weight, norm_out.bias, norm_out.eps))

    def _level(self, index: int) -> Level:
        level = self.up[index]
        assert isinstance(level, Level)
        return level

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype != torch.float32 and SHARED_STATISTICS.get() is None:
            last = x.contiguous(memory_format=torch.channels_last)
            if decoder.use_fused_maps(last):
                return self.fused(last)
        return self.fine(x, len(self.up))


def values_at(widths: Sequence[int], level: int, height: int, width: int) -> int:
    """Numbers that the decoder holds at a time in the blocks of a level, for one latent of height x width.

    A residual block holds its input and two maps of the input's width while it normalises; its input, the activated
    map and the first convolution's outcome; or its input, and its outcome three times while the shortcut is added.
    """
    outputs, inputs = widths[level], widths[min(level + 1, len(widths) - 1)]
    cells = height * width * 4 ** (len(widths) - 1 - level)
    return cells * max(3 * inputs, 2 * inputs + outputs, inputs + 3 * outputs)
