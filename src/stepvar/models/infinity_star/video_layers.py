"""The causal layers of the video tokenizer; parameter names are those of the published checkpoints.

Videos are (B, C, F, H, W). Everything looks at past frames only, so a video can be processed chunk by chunk: a
:class:`Past` carries what the next chunk needs to know of the ones before it, and any cut gives the same numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.models.precision import for_weight

CONTEXT = 2
"""Frames before a frame that a convolution looks at."""


class Past:
    """What the layers remember of the chunks of one video that are before them.

    Attributes:
        first: whether the next chunk is the first one: its first frame stands alone, later frames come in groups.
        more: whether another chunk follows, for which frames have to be kept.
    """

    def __init__(self, more: bool = False) -> None:
        self.first = True
        self.more = more
        self._frames: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Tensor) -> Tensor:
        """``x`` (B, C, F, H, W) with the frames before it; before the first one it stands itself, repeated."""
        before = self._frames.pop(layer, None)
        if before is None:
            before = x[:, :, :1].expand(-1, -1, CONTEXT, -1, -1)
        extended = torch.cat((before, x), dim=2)
        if self.more:
            # A copy: a view would keep the whole chunk in memory.
            self._frames[layer] = extended[:, :, -CONTEXT:].clone()
        return extended


def silu(x: Tensor) -> Tensor:
    """In place where nothing has to be remembered for gradients: ``x`` must be the caller's own."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class CausalConv(nn.Module):
    """A 3x3x3 convolution that looks at the two frames before each, under the name ``conv``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self.conv(past.extend(self, for_weight(x, self.conv.weight)))


class PointConv(nn.Module):
    """A linear map of the channels of every cell, under the name ``conv``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(for_weight(x, self.conv.weight))


def unit_factor(x: Tensor) -> Tensor:
    """What brings the channels of every cell of (B, C, F, H, W) to length ``sqrt(C)``: (B, 1, F, H, W).

    Their length is summed in float32 whatever the format.
    """
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    return math.sqrt(x.shape[1]) / length.clamp_min(1e-12)


class ChannelNorm(nn.Module):
    """``x / |x| * sqrt(C) * gamma`` over the channels of every cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor, past: Past, latent: Tensor | None = None) -> Tensor:
        normal = x * unit_factor(x).to(x.dtype)
        room = None if torch.is_grad_enabled() else normal
        return torch.mul(normal, self.gamma.to(x.dtype), out=room)


class LatentNorm(nn.Module):
    """A channel norm whose gain and shift come from the latent cell that a feature belongs to.

    The maps from the latent are linear in each cell, so they commute with its enlargement to the size of the
    features: they are evaluated on the few latent cells, and the cells of the features look them up.
    """

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = ChannelNorm(channels)
        self.conv_y = PointConv(latent_channels, channels)
        self.conv_b = PointConv(latent_channels, channels)

    def forward(self, x: Tensor, past: Past, latent: Tensor | None = None) -> Tensor:
        """Features (B, C, F, H, W) of the chunk whose latent is (B, c, t, h, w)."""
        assert latent is not None
        frames = latent_frames(x.shape[2], latent.shape[2], past.first, x.device)
        gain = (self.conv_y(latent) * self.norm_layer.gamma)[:, :, frames].to(x.dtype)
        shift = self.conv_b(latent)[:, :, frames].to(x.dtype)
        normal = _by_latent_cell(x * unit_factor(x).to(x.dtype), latent)
        room = None if torch.is_grad_enabled() else normal
        return torch.addcmul(_spread(shift), normal, _spread(gain), out=room).flatten(5, 6).flatten(3, 4)


def latent_frames(frames: int, latents: int, first: bool, device: torch.device) -> Tensor:
    """The latent frame that each frame of features belongs to.

    In the first chunk one frame belongs to the first latent and an equal number to each other one.
    """
    index = torch.arange(frames, device=device)
    if not first:
        return index // (frames // latents)
    group = max((frames - 1) // max(latents - 1, 1), 1)
    return (index + group - 1) // group


def _by_latent_cell(x: Tensor, latent: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B, C, F, h, H/h, w, W/w), a view."""
    return x.unflatten(4, (latent.shape[4], -1)).unflatten(3, (latent.shape[3], -1))


def _spread(per_cell: Tensor) -> Tensor:
    """(B, C, F, h, w) -> (B, C, F, h, 1, w, 1)."""
    return per_cell.unsqueeze(4).unsqueeze(6)


class ResBlock(nn.Module):
    """A residual block; its norms listen to the latent where there is one.

    Args:
        latent_channels: of the latent; None: plain norms.
    """

    def __init__(self, channels: int, latent_channels: int | None) -> None:
        super().__init__()
        self.norm1 = norm_of(channels, latent_channels)
        self.conv1 = CausalConv(channels, channels)
        self.norm2 = norm_of(channels, latent_channels)
        self.conv2 = CausalConv(channels, channels)

    def forward(self, x: Tensor, past: Past, latent: Tensor | None = None) -> Tensor:
        # One expression, so that no map outlives its use.
        inner = silu(self.norm2(self.conv1(silu(self.norm1(x, past, latent)), past), past, latent))
        return self.conv2(inner, past).add_(x)


def norm_of(channels: int, latent_channels: int | None) -> nn.Module:
    return ChannelNorm(channels) if latent_channels is None else LatentNorm(channels, latent_channels)


class _Branch(nn.Module):
    """Norm, activation and convolution of a change of resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(inputs)
        self.conv = CausalConv(inputs, outputs)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self.conv(silu(self.norm(x, past)), past)


class Downsample(nn.Module):
    """Halves height and width, and with ``frames`` = 2 the number of frames after the first one.

    Beside the convolution runs a shortcut without weights: the same cells, averaged over groups of channels.
    """

    def __init__(self, inputs: int, outputs: int, frames: int) -> None:
        super().__init__()
        self.outputs, self.frames = outputs, frames
        self.conv = _Branch(inputs, outputs // 4)

    def forward(self, x: Tensor, past: Past, latent: Tensor | None = None) -> Tensor:
        shortcut = _cells_to_channels(x).unflatten(1, (-1, self.outputs)).mean(dim=1)
        return self._fewer_frames(_cells_to_channels(self.conv(x, past)).add_(shortcut), past.first)

    def _fewer_frames(self, x: Tensor, first: bool) -> Tensor:
        if self.frames == 1:
            return x
        alone, grouped = (x[:, :, :1], x[:, :, 1:]) if first else (x[:, :, :0], x)
        if grouped.shape[2] == 0:
            return alone
        mean = grouped.unflatten(2, (-1, self.frames)).mean(dim=3)
        return torch.cat((alone, mean), dim=2) if first else mean


def _cells_to_channels(x: Tensor) -> Tensor:
    """(B, C, F, 2h, 2w) -> (B, 4C, F, h, w); the place in the 2x2 block is the slower part of the channel."""
    blocks = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))
    return blocks.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)


class Upsample(nn.Module):
    """Doubles height and width, and with ``frames`` = 2 the number of frames after the first one.

    Beside the convolution runs a shortcut without weights: the same channels, repeated as often as needed.
    """

    def __init__(self, inputs: int, outputs: int, frames: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.frames = inputs, outputs, frames
        self.conv = _Branch(inputs, 4 * frames * outputs)

    def forward(self, x: Tensor, past: Past, latent: Tensor | None = None) -> Tensor:
        cells = self.conv(x, past)
        cells.unflatten(1, (-1, self.inputs)).add_(x.unsqueeze(1))
        larger = self._channels_to_cells(cells)
        del cells
        if self.frames == 1 or not past.first:
            return larger
        return torch.cat((larger[:, :, : self.frames].mean(dim=2, keepdim=True), larger[:, :, self.frames :]), dim=2)

    def _channels_to_cells(self, x: Tensor) -> Tensor:
        """(B, frames * 4 * outputs, F, h, w) -> (B, outputs, frames * F, 2h, 2w); the channel is the fastest part."""
        parts = x.unflatten(1, (self.frames, 2, 2, self.outputs))  # B, pt, ph, pw, C, F, h, w
        return parts.permute(0, 4, 5, 1, 6, 2, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)
