"""Images of what a method did: sheets, differences, maps of kept tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain, repeat

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from stepvar.errors import UsageError

TILE = 384
"""Pixels of the longer side that small images are enlarged to on a sheet."""

PAPER, INK, GREY, FRAME = (255, 255, 255), (28, 28, 32), (105, 105, 115), (205, 205, 212)
PRUNED = np.array([24.0, 26.0, 58.0], dtype=np.float32)
"""Tint of tokens that were not computed: a dark blue."""

MARGIN, GAP, TITLE_SIZE, HEADING_SIZE = 32, 20, 19, 27

Tile = tuple[str, Image.Image]


def enlarge(image: Image.Image, size: int = TILE) -> Image.Image:
    """Scales an image up until its longer side is ``size``; larger ones are left alone."""
    return image if max(image.size) >= size else ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)


def kept_overlay(image: Image.Image, kept_map: ArrayLike, frame: int = 0, square: bool = False) -> Image.Image:
    """The image with its pruned tokens dimmed and tinted, kept ones clear, and lines between tokens.

    Args:
        image: what was generated.
        kept_map: (t, h, w) in [0, 1], how often a token was kept; 1 is always.
        frame: which of the t frames ``image`` shows.
        square: whether the map is that of a square with the image in its top left corner, as that of an edit is.

    Raises:
        UsageError: if the map does not have three dimensions.
    """
    kept = np.asarray(kept_map, dtype=np.float32)
    if kept.ndim != 3:
        raise UsageError(f"kept_map of shape {kept.shape}: must be (t, h, w)")
    pixels = np.asarray(enlarge(image.convert("RGB")), dtype=np.float32)
    # Which token each row and column of pixels lies in, and which are the first of a token.
    sides = (max(pixels.shape[:2]),) * 2 if square else pixels.shape
    counts = zip(pixels.shape, sides, kept.shape[1:], strict=False)
    rows, columns = (np.arange(shown) * count // side for shown, side, count in counts)
    edges = (np.diff(rows, prepend=0) > 0)[:, None] | (np.diff(columns, prepend=0) > 0)
    clear = kept[frame][rows][:, columns, None].clip(0, 1)
    mixed = clear * pixels + (1 - clear) * (0.22 * pixels + 0.78 * PRUNED)
    mixed[edges] = 0.72 * mixed[edges] + 0.28 * np.array(FRAME, dtype=np.float32)
    return Image.fromarray(mixed.round().astype(np.uint8))


def difference(a: Image.Image, b: Image.Image, amplification: float = 4.0) -> Image.Image:
    """``amplification * |a - b|`` per channel, on black.

    Raises:
        UsageError: if the images differ in size.
    """
    if a.size != b.size:
        raise UsageError(f"images of {a.size} and {b.size} pixels: only equal sizes can be compared")
    plain = ImageChops.difference(a.convert("RGB"), b.convert("RGB"))
    return plain.point(lambda level: min(round(amplification * level), 255))


def contact_sheet(tiles: Sequence[Tile], columns: int, heading: Sequence[str] = ()) -> Image.Image:
    """Titled images in rows on white paper, all in cells of one size.

    Args:
        tiles: (title, image), row by row.
        columns: images per row.
        heading: lines above them; the first is set larger.

    Raises:
        UsageError: without images or columns.
    """
    if not tiles or columns < 1:
        raise UsageError(f"{len(tiles)} images in {columns} columns: at least one of each is needed")
    images = [enlarge(image.convert("RGB")) for _, image in tiles]
    cell_w, cell_h = (max(image.size[axis] for image in images) for axis in (0, 1))
    titles = [_wrap(title, TITLE_SIZE, cell_w) for title, _ in tiles]
    title_h = max(map(len, titles)) * _line_height(TITLE_SIZE) + 4
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width = 2 * MARGIN + columns * cell_w + (columns - 1) * GAP
    styles = chain([(HEADING_SIZE, INK)], repeat((TITLE_SIZE, GREY)))
    wrapped = zip(heading, styles, strict=False)
    head = [(_wrap(line, size, width - 2 * MARGIN), size, ink) for line, (size, ink) in wrapped]
    top = MARGIN + sum(len(lines) * _line_height(size) for lines, size, _ in head) + (GAP if head else 0)
    sheet = Image.new("RGB", (width, top + rows * (cell_h + title_h) + (rows - 1) * GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for lines, size, ink in head:
        y = _write(draw, (MARGIN, y), lines, size, ink)
    for index, (image, lines) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (cell_w + GAP), top + row * (cell_h + title_h + GAP)
        _write(draw, (x, y), lines, TITLE_SIZE, INK)
        x, y = x + (cell_w - image.width) // 2, y + title_h + (cell_h - image.height) // 2
        draw.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=FRAME)
        sheet.paste(image, (x, y))
    return sheet


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], size: int, ink: tuple[int, int, int]
) -> int:
    """Writes lines from a place (x, y) down; returns the y below them."""
    x, y = place
    for line in lines:
        draw.text((x, y), line, fill=ink, font=_font(size))
        y += _line_height(size)
    return y


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _line_height(size: int) -> int:
    return round(1.4 * size)


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Breaks a text into lines at most ``width`` pixels wide; a single longer word stays whole."""
    # The font that comes with Pillow has ASCII letters and little more.
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    lines = [""]
    for word in plain.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
