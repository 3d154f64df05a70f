"""Pictures of what a method did, and PNG files that say how they were made."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from stepvar.errors import UsageError
from stepvar.utils.files import atomic_path

TILE = 384
"""Pixels of the longer side that small pictures are enlarged to on a sheet."""

PAPER, INK, GREY, FRAME = (255, 255, 255), (28, 28, 32), (105, 105, 115), (205, 205, 212)
PRUNED = np.array([24.0, 26.0, 58.0], dtype=np.float32)
"""Tint of tokens that were not computed: a dark blue."""

MARGIN, GAP, TITLE_SIZE, HEADING_SIZE = 32, 20, 19, 27

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Tile = tuple[str, Image.Image]


def enlarge(image: Image.Image, size: int = TILE, smooth: bool = True) -> Image.Image:
    """Scales a picture up until its longer side is ``size``; larger ones are left alone."""
    factor = size / max(image.size)
    if factor <= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def kept_overlay(image: Image.Image, kept_map: ArrayLike, frame: int = 0) -> Image.Image:
    """The picture with its pruned tokens dimmed and tinted, kept ones clear, and the token grid drawn.

    Args:
        image: what was drawn.
        kept_map: (t, h, w) in [0, 1], how often a token was kept; 1 is always.
        frame: which of the t frames ``image`` shows.

    Raises:
        UsageError: if the map does not have three dimensions.
    """
    kept = np.asarray(kept_map, dtype=np.float32)
    if kept.ndim != 3:
        raise UsageError(f"kept_map of shape {kept.shape}: must be (t, h, w)")
    large = enlarge(image.convert("RGB"))
    pixels = np.asarray(large, dtype=np.float32)
    rows, columns = (_cells(side, count) for side, count in zip(pixels.shape, kept.shape[1:], strict=False))
    clear = kept[frame][rows][:, columns, None].clip(0, 1)
    dimmed = 0.22 * pixels + 0.78 * PRUNED
    mixed = clear * pixels + (1 - clear) * dimmed
    edges = _edges(rows)[:, None] | _edges(columns)[None, :]
    mixed[edges] = 0.72 * mixed[edges] + 0.28 * np.array(FRAME, dtype=np.float32)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _cells(pixels: int, cells: int) -> NDArray[np.int64]:
    """Which cell each pixel of a side lies in: nearest-neighbour enlargement as an index."""
    return (np.arange(pixels) * cells // pixels).astype(np.int64)


def _edges(cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The first pixel of every cell but the first."""
    return np.diff(cells, prepend=cells[0]) > 0


def difference(a: Image.Image, b: Image.Image, amplification: float = 4.0) -> Image.Image:
    """``amplification * |a - b|`` per channel, on black.

    Raises:
        UsageError: if the pictures differ in size.
    """
    if a.size != b.size:
        raise UsageError(f"pictures of {a.size} and {b.size} pixels: only equal sizes can be compared")
    first, second = (np.asarray(image.convert("RGB"), dtype=np.float32) for image in (a, b))
    amplified = (amplification * np.abs(first - second)).clip(0, 255)
    return Image.fromarray(amplified.round().astype(np.uint8))


def contact_sheet(tiles: Sequence[Tile], columns: int, heading: Sequence[str] = ()) -> Image.Image:
    """Titled pictures in rows on white paper, all in cells of one size.

    Args:
        tiles: (title, picture), row by row.
        columns: pictures per row.
        heading: lines above them; the first is set larger.

    Raises:
        UsageError: without pictures or columns.
    """
    if not tiles or columns < 1:
        raise UsageError(f"{len(tiles)} pictures in {columns} columns: at least one of each is needed")
    pictures = [enlarge(image.convert("RGB")) for _, image in tiles]
    cell_w, cell_h = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    font = _font(TITLE_SIZE)
    titles = [_wrap(title, font, cell_w) for title, _ in tiles]
    title_h = max(len(lines) for lines in titles) * _line_height(TITLE_SIZE) + 4
    columns = min(columns, len(tiles))
    width = 2 * MARGIN + columns * cell_w + (columns - 1) * GAP
    head = _heading(heading, width - 2 * MARGIN)
    top = MARGIN + sum(_line_height(size) for _, size, _ in head) + (GAP if head else 0)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (width, top + rows * (cell_h + title_h) + (rows - 1) * GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for text, size, colour in head:
        draw.text((MARGIN, y), text, fill=colour, font=_font(size))
        y += _line_height(size)
    for index, (picture, lines) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (cell_w + GAP), top + row * (cell_h + title_h + GAP)
        for number, line in enumerate(lines):
            draw.text((x, y + number * _line_height(TITLE_SIZE)), line, fill=INK, font=font)
        _place(sheet, draw, picture, (x, y + title_h, cell_w, cell_h))
    return sheet


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Pastes a picture into the middle of a cell (x, y, width, height), with a hairline around it."""
    x, y = box[0] + (box[2] - picture.width) // 2, box[1] + (box[3] - picture.height) // 2
    draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FRAME)
    sheet.paste(picture, (x, y))


def _heading(lines: Sequence[str], width: int) -> list[tuple[str, int, tuple[int, int, int]]]:
    """Lines that fit the width, with size and colour."""
    styled = []
    for number, line in enumerate(lines):
        size, colour = (HEADING_SIZE, INK) if number == 0 else (TITLE_SIZE, GREY)
        styled += [(part, size, colour) for part in _wrap(line, _font(size), width)]
    return styled


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _line_height(size: int) -> int:
    return round(1.4 * size)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Breaks a text into lines at most ``width`` pixels wide; a single longer word stays whole."""
    lines = [""]
    for word in _plain(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _plain(text: str) -> str:
    # The font that comes with Pillow has ASCII letters and little more.
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a PNG, whole or not at all, with text chunks.

    Raises:
        OutputError: if it cannot be written.
    """
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_metadata(path: Path) -> dict[str, str]:
    """The text chunks of a PNG.

    Raises:
        UsageError: if there is no such file or it is no PNG.
    """
    try:
        with Image.open(path) as image:
            if not isinstance(image, PngImageFile):
                raise UsageError(f"{path}: is a {image.format} picture; only PNG files carry the settings")
            return {key: str(value) for key, value in image.text.items()}
    except UnidentifiedImageError:
        raise UsageError(f"{path}: is not a picture; give a PNG file that stepvar wrote") from None
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder; name a PNG file in it") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: cannot be read ({error}); give a PNG file that stepvar wrote") from None
