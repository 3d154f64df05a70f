"""Decoding large latents tile by tile: the memory of one tile, whatever the size of the image.

Two things keep tiles from showing. Coarse levels of the decoder run on the whole latent, as many of them as need no
more memory than one tile does at its finest: they look farthest. And all tiles are normalised by the same statistics,
those of a shrunken one: with statistics of its own every tile has colours of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.models.autoencoder import SHARED_STATISTICS, Decoder, SharedStatistics, values_at

SMALLEST_TILE = 8
"""Latent cells; below this a tile is mostly overlap."""


def default_overlap(tile: int) -> int:
    """Latent cells that neighbouring tiles share at least."""
    return max(tile // 4, 2)


def first_whole_level(widths: tuple[int, ...], height: int, width: int, tile: int) -> int:
    """The finest level of a decoder that is run on the whole of a latent of height x width.

    0: the latent needs no tiles; the number of levels: all of them are tiled.

    Args:
        widths: channels of each level.
    """
    limit = max(values_at(widths, level, tile, tile) for level in range(len(widths)))
    whole = len(widths)
    while whole and values_at(widths, whole - 1, height, width) <= limit:
        whole -= 1
    return whole


def decode_tiled(decoder: Decoder, latent: Tensor, tile: int | None) -> Tensor:
    """Latent (B, d, H, W) -> images (B, 3, stride H, stride W) in float32, not clamped.

    Args:
        latent: in the number format of the decoder's weights.
        tile: side of a tile in latent cells; None: in one piece.
    """
    height, width = latent.shape[-2:]
    level = 0 if tile is None else first_whole_level(decoder.widths, height, width, tile)
    if tile is None or level == 0:
        return decoder(latent).float()
    levels = len(decoder.widths)
    coarse = decoder.coarse(latent, level)
    magnified = coarse.shape[-1] // width
    side, stride = tile * magnified, 2 ** min(level, levels - 1)

    def fine(part: Tensor) -> Tensor:
        return decoder.fine(part, level).float()

    small = (min(side, coarse.shape[-2]), min(side, coarse.shape[-1]))
    with shared_statistics(lambda: fine(F.interpolate(coarse, size=small, mode="nearest"))):
        return tiled(fine, coarse, side, default_overlap(tile) * magnified, stride)


@contextmanager
def shared_statistics(run: Callable[[], Tensor]) -> Iterator[None]:
    """Normalises everything within the block by the statistics of what ``run`` computes before it."""
    shared = SharedStatistics()
    token = SHARED_STATISTICS.set(shared)
    try:
        run()
        shared.recording = False
        yield
    finally:
        SHARED_STATISTICS.reset(token)


def tiled(decode: Callable[[Tensor], Tensor], latent: Tensor, tile: int | None, overlap: int, stride: int) -> Tensor:
    """Decodes by overlapping tiles whose images fade into each other.

    Args:
        decode: latent (B, d, h, w) -> images (B, C, stride h, stride w).
        latent: (B, d, H, W).
        tile: side of a tile in latent cells; None, or a latent no larger than one tile: in one piece.
        overlap: cells that neighbouring tiles share at least; at most a third of ``tile``, so that no more than two
            tiles fade into each other at one place.
        stride: pixels per cell along each side.

    Returns:
        (B, C, stride H, stride W). In one piece it is ``decode(latent)`` itself. Tiles differ from it where a
        decoder looks farther than the overlap reaches, and by statistics taken over the tile alone.

    Raises:
        ValueError: if the overlap is too large.
    """
    height, width = latent.shape[-2:]
    if tile is None or (height <= tile and width <= tile):
        return decode(latent)
    if not 0 <= 3 * overlap <= tile:
        raise ValueError(f"overlap={overlap}: must be at most a third of the tile, {tile} cells")
    rows, columns = (_pieces(side, tile, overlap, stride, latent.device) for side in (height, width))
    image: Tensor | None = None
    for top, bottom, fade_y in rows:
        for left, right, fade_x in columns:
            part = decode(latent[..., top:bottom, left:right])
            if image is None:
                image = part.new_zeros(*part.shape[:-2], height * stride, width * stride)
            place = image[..., top * stride : bottom * stride, left * stride : right * stride]
            place += part * (fade_y[:, None] * fade_x)
    assert image is not None  # there is at least one tile
    return image


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis of ``side`` cells: evenly, so that none is narrower than the others."""
    if side <= tile:
        return [0]
    steps = ceil((side - tile) / (tile - overlap))
    return [round(step * (side - tile) / steps) for step in range(steps + 1)]


def _pieces(side: int, tile: int, overlap: int, stride: int, device: torch.device) -> list[tuple[int, int, Tensor]]:
    """Per tile its first cell, the one after its last, and its weight in each of its pixels; all weights sum to 1."""
    begins = starts(side, tile, overlap)
    ends = [min(begin + tile, side) for begin in begins]
    pieces = []
    for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        before = ends[index - 1] - begin if index else 0
        after = end - begins[index + 1] if index + 1 < len(begins) else 0
        pixel = torch.arange((end - begin) * stride, device=device) + 0.5
        fade = _rise(pixel, before * stride) * _rise((end - begin) * stride - pixel, after * stride)
        pieces.append((begin, end, fade))
    return pieces


def _rise(distance: Tensor, shared: int) -> Tensor:
    """Weights from 0 to 1 over the pixels shared with a neighbour, by their distance from the tile's edge.

    The outer quarter has no weight: what a decoder puts there is marred by the zeros that it pads with. The rise
    is a smooth step, which is its own mirror image, so that both neighbours' weights sum to 1.
    """
    if shared == 0:
        return torch.ones_like(distance)
    place = ((distance / shared - 0.25) / 0.5).clamp(0, 1)
    return place * place * (3 - 2 * place)
