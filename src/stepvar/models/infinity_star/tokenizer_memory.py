"""How much memory the video tokenizer takes, from shapes alone, beside its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from stepvar.models.infinity_star.tokenizer import CHUNK, VideoTokenizerConfig
from stepvar.models.infinity_star.video_layers import CONTEXT


@dataclass(frozen=True)
class Map:
    """A map of features: channels, frames of a chunk, and cells of each frame."""

    channels: int
    frames: int
    cells: int

    @property
    def values(self) -> int:
        return self.channels * self.frames * self.cells

    @property
    def context(self) -> int:
        """Of the frames that a convolution over it remembers."""
        return self.channels * CONTEXT * self.cells


@dataclass(frozen=True)
class Stage:
    """What a layer takes at its widest, in values.

    Attributes:
        held: of all tensors.
        space: that its convolution works in: the libraries of GPUs bring maps into another order first.
        remembered: of the frames that are kept for the next chunk.
    """

    held: int
    space: int = 0
    remembered: int = 0


def decode_bytes(
    config: VideoTokenizerConfig,
    latents: int,
    height: int,
    width: int,
    itemsize: int = 4,
    chunk: int | None = CHUNK,
    tile: int | None = None,
    space: bool = True,
) -> int:
    """Most bytes that decoding one video takes at a time, the video itself included.

    Args:
        latents, height, width: of the features.
        itemsize: bytes per number in the tokenizer's format.
        chunk, tile: as for :meth:`~stepvar.models.infinity_star.tokenizer.VideoTokenizer.decode`.
        space: whether to count what convolutions work in, beside what tensors hold.
    """
    frame = 3 * 4 * config.frames(latents) * config.stride**2
    held = frame * height * width
    if tile is not None and max(height, width) > tile:
        height, width = min(height, tile), min(width, tile)
        held += frame * height * width  # tiles are blended into the video, each decoded whole
    return held + itemsize * _peak(_decoder(config, *_chunk(latents, chunk), height * width), latents, chunk, space)


def encode_bytes(
    config: VideoTokenizerConfig,
    latents: int,
    height: int,
    width: int,
    itemsize: int = 4,
    chunk: int | None = CHUNK,
    space: bool = True,
) -> int:
    """Most bytes that encoding one video takes at a time, without the video itself.

    Args: as for :func:`decode_bytes`.
    """
    return itemsize * _peak(_encoder(config, *_chunk(latents, chunk), height * width), latents, chunk, space)


def _chunk(latents: int, chunk: int | None) -> tuple[int, bool]:
    """Latent frames of the largest chunk, and whether it is the first and only one."""
    return (latents, True) if chunk is None or chunk >= latents else (chunk, False)


def _peak(stages: Iterable[Stage], latents: int, chunk: int | None, space: bool) -> int:
    found = list(stages)
    kept = sum(stage.remembered for stage in found) if chunk is not None and chunk < latents else 0
    return kept + max(stage.held + space * stage.space for stage in found)


def _maps(config: VideoTokenizerConfig, latents: int, alone: bool, tokens: int) -> list[Map]:
    """The map of each level, the first at full resolution."""
    coarsest = tokens * config.patch**2
    maps = []
    for level, channels in enumerate(config.channels):
        frames = math.prod(config.frames_of(step) for step in range(level, len(config.channels) - 1))
        count = 1 + frames * (latents - 1) if alone else frames * latents
        maps.append(Map(channels, count, coarsest * 4 ** (len(config.channels) - 1 - level)))
    return maps


def _convolution(x: Map, outcome: int, beside: int) -> Stage:
    """A convolution: what it reads, that again with the frames before it, its outcome, and other maps."""
    extended = x.values + x.context
    return Stage(beside + x.values + extended + outcome, extended + outcome, x.context)


def _blocks(x: Map, count: int) -> list[Stage]:
    """Residual blocks, which hold what came in beside."""
    return [_convolution(x, x.values, x.values)] * (2 * count)


def _decoder(config: VideoTokenizerConfig, latents: int, alone: bool, tokens: int) -> Iterator[Stage]:
    maps = _maps(config, latents, alone, tokens)
    coarsest, finest = maps[-1], maps[0]
    yield _convolution(replace(coarsest, channels=config.latent_channels), coarsest.values, 0)
    yield from _blocks(coarsest, config.middle_blocks + config.decoder_blocks)
    for step in reversed(range(len(maps) - 1)):
        x = maps[step + 1]
        yield from _blocks(x, config.decoder_blocks)
        # The convolution gives the finer map with its cells still in the channels; moving them makes it twice.
        finer = 4 * x.cells * x.frames * maps[step].channels * config.frames_of(step)
        yield _convolution(x, finer, x.values)
        yield Stage(x.values + 2 * finer)
    yield _convolution(finest, 3 * finest.frames * finest.cells, 0)


def _encoder(config: VideoTokenizerConfig, latents: int, alone: bool, tokens: int) -> Iterator[Stage]:
    maps = _maps(config, latents, alone, tokens)
    yield _convolution(replace(maps[0], channels=3), maps[0].values, 0)
    for x, coarser in pairwise(maps):
        yield from _blocks(x, config.blocks)
        # Beside the convolution waits the shortcut, which is as large as what comes out.
        outcome = x.frames * coarser.cells * coarser.channels
        yield _convolution(x, outcome, x.values + outcome)
    coarsest = maps[-1]
    yield from _blocks(coarsest, config.blocks + config.middle_blocks)
    yield _convolution(coarsest, 2 * config.latent_channels * coarsest.frames * coarsest.cells, 0)
