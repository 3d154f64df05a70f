"""How much memory the video tokenizer takes, from shapes alone.

What is counted is what tensors hold: weights and the working space of convolutions come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


def decode_bytes(
    config: VideoTokenizerConfig,
    latents: int,
    height: int,
    width: int,
    itemsize: int = 4,
    chunk: int | None = CHUNK,
    tile: int | None = None,
) -> int:
    """Most bytes that decoding one video holds at a time, the video itself included.

    Args:
        latents, height, width: of the features.
        itemsize: bytes per number in the tokenizer's format.
        chunk, tile: as for :meth:`~stepvar.models.infinity_star.tokenizer.VideoTokenizer.decode`.
    """
    video = 3 * 4 * config.frames(latents) * height * width * config.stride**2
    tiled = tile is not None and max(height, width) > tile
    if tile is not None:
        height, width = min(height, tile), min(width, tile)
    # Tiles are blended into the video, each decoded whole.
    part = 3 * 4 * config.frames(latents) * height * width * config.stride**2 if tiled else 0
    peak, remembered = _work(_decoder(config, _chunk(latents, chunk), height * width))
    return itemsize * (peak + (remembered if chunk is not None and chunk < latents else 0)) + part + video


def encode_bytes(
    config: VideoTokenizerConfig, latents: int, height: int, width: int, itemsize: int = 4, chunk: int | None = CHUNK
) -> int:
    """Most bytes that encoding one video holds at a time, without the video itself.

    Args: as for :func:`decode_bytes`.
    """
    peak, remembered = _work(_encoder(config, _chunk(latents, chunk), height * width))
    return itemsize * (peak + (remembered if chunk is not None and chunk < latents else 0))


def _chunk(latents: int, chunk: int | None) -> tuple[int, bool]:
    """Latent frames of the largest chunk, and whether it is the first and only one."""
    return (latents, True) if chunk is None or chunk >= latents else (chunk, False)


def _work(stages: Iterator[tuple[int, int]]) -> tuple[int, int]:
    peaks, contexts = zip(*stages, strict=True)
    return max(peaks), sum(contexts)


def _maps(config: VideoTokenizerConfig, chunk: tuple[int, bool], tokens: int) -> list[Map]:
    """The map of each level, the first at full resolution."""
    latents, alone = chunk
    coarsest = tokens * config.patch**2
    maps = []
    for level, channels in enumerate(config.channels):
        frames = 1
        for step in range(level, len(config.channels) - 1):
            frames *= config.frames_of(step)
        count = 1 + frames * (latents - 1) if alone else frames * latents
        maps.append(Map(channels, count, coarsest * 4 ** (len(config.channels) - 1 - level)))
    return maps


def _block(x: Map, count: int) -> Iterator[tuple[int, int]]:
    """Residual blocks: what came in, what a convolution reads, once more with the frames before it, and its outcome."""
    for _ in range(count):
        yield 4 * x.values + x.context, 2 * x.context


def _decoder(config: VideoTokenizerConfig, chunk: tuple[int, bool], tokens: int) -> Iterator[tuple[int, int]]:
    """Per layer the most values that it holds, and those that it remembers."""
    maps = _maps(config, chunk, tokens)
    yield 0, config.latent_channels * maps[-1].context // maps[-1].channels
    yield from _block(maps[-1], config.middle_blocks + config.decoder_blocks)
    for x, finer in zip(maps[:0:-1], maps[-2::-1], strict=True):
        yield from _block(x, config.decoder_blocks)
        # The convolution gives the finer map, its cells still in the channels; moving them makes it twice.
        whole = 4 * x.cells * x.frames * finer.channels * max(1, round(finer.frames / x.frames))
        yield max(3 * x.values + x.context + whole, x.values + 2 * whole), x.context
    last = maps[0]
    yield 2 * last.values + last.context + 3 * last.frames * last.cells, last.context


def _encoder(config: VideoTokenizerConfig, chunk: tuple[int, bool], tokens: int) -> Iterator[tuple[int, int]]:
    maps = _maps(config, chunk, tokens)
    yield 0, 3 * maps[0].context // maps[0].channels
    for x, coarser in pairwise(maps):
        yield from _block(x, config.blocks)
        outcome = x.frames * coarser.cells * coarser.channels
        yield 3 * x.values + x.context + 2 * outcome, x.context
    last = maps[-1]
    yield from _block(last, config.blocks + config.middle_blocks)
    yield 2 * last.values + last.context, last.context
