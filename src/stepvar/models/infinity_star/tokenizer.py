"""The video tokenizer of the InfinityStar family; parameter names are those of the published checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.errors import CheckpointError, UsageError
from stepvar.models.infinity_star.video_layers import CausalConv, Downsample, Past, ResBlock, Upsample, norm_of, silu
from stepvar.models.precision import Policy, for_weight
from stepvar.models.tiling import default_overlap, tiled

POLICY: Policy = ((r".*\.gamma$", "exact"), (r"scale_learnable_parameters$", "exact"), (r"", "tokenizer"))
"""Number formats of the weights."""

CHUNK = 2
"""Latent frames that are encoded or decoded at a time."""


@dataclass(frozen=True)
class VideoTokenizerConfig:
    """The shape of the video tokenizer; the fields' values are the released one's.

    Attributes:
        channels: per level, the first at full resolution; each level halves height and width of the one before.
        halves_time: for each step from a level to the next, whether it halves the number of frames, too.
        blocks: residual blocks per level of the encoder.
        decoder_blocks: likewise of the decoder.
        middle_blocks: residual blocks after the last level of the encoder, and before the decoder's first.
        latent_channels: of the image between encoder and decoder; the encoder gives two numbers for each.
        patch: side of the square of its cells that make one token.
        token_channels: channels d of a token.
    """

    channels: tuple[int, ...] = (96, 192, 384, 384)
    halves_time: tuple[bool, ...] = (True, True, False)
    blocks: int = 2
    decoder_blocks: int = 3
    middle_blocks: int = 2
    latent_channels: int = 16
    patch: int = 2
    token_channels: int = 64

    def __post_init__(self) -> None:
        if len(self.halves_time) != len(self.channels) - 1:
            raise CheckpointError(
                f"halves_time={self.halves_time}: {len(self.channels)} levels need {len(self.channels) - 1} entries"
            )
        for inputs, outputs in pairwise(self.channels):
            if outputs % 4 or 4 * inputs % outputs:
                raise CheckpointError(
                    f"channels={self.channels}: each level needs a multiple of 4 that divides 4 x the level before"
                )

    def frames_of(self, step: int) -> int:
        """By how much the step from level ``step`` to the next divides the number of frames."""
        return 2 if self.halves_time[step] else 1

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return self.patch << (len(self.channels) - 1)

    @property
    def frame_stride(self) -> int:
        """Frames per latent frame; the first frame has a latent frame of its own."""
        return 1 << sum(self.halves_time)

    @property
    def cell_channels(self) -> int:
        """Numbers of the latent under one token."""
        return self.latent_channels * self.patch**2

    def frames(self, latent_frames: int) -> int:
        """Frames of a video of so many latent frames."""
        return 1 + self.frame_stride * (latent_frames - 1)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video of so many frames.

        Raises:
            UsageError: if it cannot be cut into a first frame and whole groups.
        """
        groups, left = divmod(frames - 1, self.frame_stride)
        if frames < 1 or left:
            raise UsageError(
                f"frames={frames}: must be 1 plus a multiple of {self.frame_stride}, such as {self.frames(groups + 1)}"
            )
        return 1 + groups


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next one under the name ``{name}.0``."""

    def __init__(self, blocks: list[ResBlock], name: str, step: Downsample | Upsample | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(blocks)
        self.add_module(name, nn.ModuleList([] if step is None else [step]))


def run_levels(levels: Iterable[nn.Module], x: Tensor, past: Past, latent: Tensor | None = None) -> Tensor:
    """All layers of some levels; in one loop, so that only the map at hand is held."""
    for level in levels:
        for layers in level.children():
            for layer in layers.children():
                x = layer(x, past, latent)
    return x


def _blocks(count: int, channels: int, latent_channels: int | None) -> list[ResBlock]:
    return [ResBlock(channels, latent_channels) for _ in range(count)]


class Encoder(nn.Module):
    """Chunks of a video (B, 3, F, H, W) -> moments (B, 2 latent_channels, t, H / s, W / s)."""

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = CausalConv(3, widths[0])
        levels = []
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            step = None if last else Downsample(width, widths[level + 1], config.frames_of(level))
            levels.append(Level(_blocks(config.blocks, width, None), "downsamplers", step))
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = Level(_blocks(config.middle_blocks, widths[-1], None), "downsamplers", None)
        self.norm_out = norm_of(widths[-1], None)
        self.conv_out = CausalConv(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = run_levels((*self.down_blocks, self.mid_block), self.conv_in(x, past), past)
        x = silu(self.norm_out(x, past))
        x = self.conv_out(x, past)
        past.first = False
        return x


class Decoder(nn.Module):
    """Chunks of a latent video (B, latent_channels, t, h, w) -> frames (B, 3, F, s h, s w)."""

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        widths, latent = config.channels, config.latent_channels
        coarsest, count = widths[-1], config.decoder_blocks
        self.conv_in = CausalConv(latent, coarsest)
        self.mid_block = Level(_blocks(config.middle_blocks, coarsest, latent), "upsamplers", None)
        levels = [Level(_blocks(count, coarsest, latent), "upsamplers", None)]
        for level in reversed(range(1, len(widths))):
            step = Upsample(widths[level], widths[level - 1], config.frames_of(level - 1))
            levels.append(Level(_blocks(count, widths[level], latent), "upsamplers", step))
        self.up_blocks = nn.ModuleList(levels)
        self.norm_out = norm_of(widths[0], latent)
        self.conv_out = CausalConv(widths[0], 3)

    def forward(self, latent: Tensor, past: Past) -> Tensor:
        x = run_levels((self.mid_block, *self.up_blocks), self.conv_in(latent, past), past, latent)
        x = silu(self.norm_out(x, past, latent))
        x = self.conv_out(x, past)
        past.first = False
        return x


class VideoTokenizer(nn.Module):
    """Videos (B, 3, F, H, W) in [-1, 1] to features (B, d, T, h, w), and back.

    The first frame has a latent frame of its own, so an image is a video of one frame. Nothing looks ahead:
    videos pass through chunk by chunk, in the memory of one chunk, and any size of chunk gives the same numbers.
    Everything here can be trained through.
    """

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.proj_down = nn.Linear(config.cell_channels, config.token_channels)
        self.proj_up = nn.Linear(config.token_channels, config.cell_channels)
        # Only the first is used; the published checkpoint has four.
        self.scale_learnable_parameters = nn.Parameter(torch.ones(4))

    def encode(
        self,
        video: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        mean: bool = False,
        chunk: int | None = CHUNK,
    ) -> Tensor:
        """Video (B, 3, F, H, W) -> features (B, d, T, h, w) in float32: a sample of what the encoder says of each.

        Args:
            noise: standard normal (B, latent_channels * patch^2, T, h, w) for the sample; None: sampled here.
            generator: to sample it with, on the CPU or the video's device; None: the default one of the video's device.
            mean: whether to take the mean instead of a sample.
            chunk: latent frames at a time; None: all at once.

        Raises:
            UsageError: if the video cannot be cut into tokens.
        """
        centre, log_variance = self.posterior(self.moments(video, chunk))
        if not mean:
            if noise is None:
                device = centre.device if generator is None else generator.device
                noise = torch.randn(centre.shape, generator=generator, device=device)
            centre = centre + (0.5 * log_variance).exp() * noise.to(centre)
        return self.project_down(centre)

    def moments(self, video: Tensor, chunk: int | None = CHUNK) -> Tensor:
        """Video (B, 3, F, H, W) -> encoder output (B, 2 latent_channels, T, patch h, patch w).

        Raises:
            UsageError: if the video cannot be cut into tokens.
        """
        config = self.config
        latents = config.latent_frames(video.shape[2])
        if video.shape[3] % config.stride or video.shape[4] % config.stride:
            raise UsageError(
                f"height x width {video.shape[3]}x{video.shape[4]}: both must be multiples of {config.stride}; "
                "resize or crop the video"
            )
        video = for_weight(video, self.encoder.conv_in.conv.weight)
        ends = [config.frames(min(end, latents)) for end in _ends(latents, chunk)]
        past, parts = Past(), []
        for begin, end in pairwise([0, *ends]):
            past.more = end < video.shape[2]
            parts.append(self.encoder(video[:, :, begin:end], past))
        return torch.cat(parts, dim=2)

    def posterior(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output -> mean and logarithm of the variance, each (B, latent_channels * patch^2, T, h, w)."""
        packed = F.pixel_unshuffle(moments.float().transpose(1, 2), self.config.patch).transpose(1, 2)
        mean, log_variance = packed.chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def project_down(self, packed: Tensor) -> Tensor:
        """(B, latent_channels * patch^2, T, h, w) -> features (B, d, T, h, w)."""
        weight = self.proj_down.weight
        feature = self.proj_down(for_weight(packed, weight).movedim(1, -1)).movedim(-1, 1)
        return feature.float() * self.scale_learnable_parameters[0]

    def latent_picture(self, feature: Tensor) -> Tensor:
        """Features (B, d, T, h, w) -> the decoder's input (B, latent_channels, T, patch h, patch w)."""
        cells = for_weight(feature / self.scale_learnable_parameters[0], self.proj_up.weight).movedim(1, -1)
        # (B, T, C, h, w): shuffled frame by frame.
        return F.pixel_shuffle(self.proj_up(cells).movedim(-1, 2), self.config.patch).transpose(1, 2)

    def decode(self, feature: Tensor, tile: int | None = None, chunk: int | None = CHUNK) -> Tensor:
        """Features (B, d, T, h, w) -> video (B, 3, F, H, W) in float32, about [-1, 1] (not clamped).

        Args:
            tile: side of the tiles in tokens, for bounded memory (see :mod:`stepvar.models.tiling`); None: whole
                frames.
            chunk: latent frames at a time; None: all at once.
        """

        def whole(part: Tensor) -> Tensor:
            batch, _, latents, height, width = part.shape
            config, latent, past = self.config, self.latent_picture(part), Past()
            shape = (batch, 3, config.frames(latents), config.stride * height, config.stride * width)
            video = torch.empty(shape, device=part.device)
            for begin, end in pairwise([0, *_ends(latents, chunk)]):
                past.more = end < latents
                first = config.frames(begin) if begin else 0
                video[:, :, first : config.frames(end)] = self.decoder(latent[:, :, begin:end], past).float()
            return video

        if tile is None:
            return whole(feature)
        return tiled(whole, feature, tile, default_overlap(tile), self.config.stride)


def _ends(latents: int, chunk: int | None) -> list[int]:
    """Where the chunks of so many latent frames end."""
    if chunk is None:
        return [latents]
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: must be at least 1 latent frame, or None for all at once")
    return [*range(chunk, latents, chunk), latents]
