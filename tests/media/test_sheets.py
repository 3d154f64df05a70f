"""Sheets and overlays that show what a method did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar.errors import UsageError
from stepvar.media.images import save_image
from stepvar.media.metadata import read_metadata
from stepvar.media.sheets import (
    GAP,
    MARGIN,
    PAPER,
    TILE,
    contact_sheet,
    difference,
    enlarge,
    kept_overlay,
)

ORANGE = (240, 160, 40)


def plain(width: int = 32, height: int = 32, colour: tuple[int, int, int] = ORANGE) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def centre(image: Image.Image, row: int, column: int, rows: int, columns: int) -> tuple[int, ...]:
    """The pixel in the middle of a token."""
    array = np.asarray(image)
    y, x = int((row + 0.5) * image.height / rows), int((column + 0.5) * image.width / columns)
    return tuple(int(value) for value in array[y, x])


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (24, 24), (1, 1)])
def test_overlay_shows_exactly_the_kept_tokens(rows: int, columns: int) -> None:
    kept = torch.zeros(1, rows, columns)
    kept[0, ::2, ::2] = 1
    overlay = kept_overlay(plain(40, 24), kept)
    assert max(overlay.size) == TILE
    for row in range(rows):
        for column in range(columns):
            here = centre(overlay, row, column, rows, columns)
            assert (here == ORANGE) == bool(kept[0, row, column])


def test_overlay_dims_by_how_rarely_a_token_was_kept_and_shows_the_grid() -> None:
    overlay = kept_overlay(plain(), np.array([[[1.0, 0.5, 0.0]]]))
    reds = [centre(overlay, 0, column, 1, 3)[0] for column in range(3)]
    assert reds[0] > reds[1] > reds[2]
    full = np.asarray(kept_overlay(plain(), np.ones((1, 4, 4))))
    lines = np.flatnonzero((full != ORANGE).any(axis=-1).all(axis=1))
    assert lines.tolist() == [TILE // 4, TILE // 2, 3 * TILE // 4]


def test_overlay_takes_the_frame_that_it_is_told_and_refuses_other_maps() -> None:
    maps = np.stack([np.ones((2, 2)), np.zeros((2, 2))])
    assert centre(kept_overlay(plain(), maps, frame=0), 0, 0, 2, 2) == ORANGE
    assert centre(kept_overlay(plain(), maps, frame=1), 0, 0, 2, 2) != ORANGE
    with pytest.raises(UsageError, match="kept_map"):
        kept_overlay(plain(), np.ones((4, 4)))


def test_difference_is_amplified_and_clipped() -> None:
    a, b = plain(colour=(100, 100, 100)), plain(colour=(110, 95, 200))
    assert difference(a, b, 4).getpixel((0, 0)) == (40, 20, 255)
    assert difference(b, a, 4).getpixel((0, 0)) == (40, 20, 255)
    assert difference(a, a).getextrema() == ((0, 0),) * 3
    with pytest.raises(UsageError, match="size"):
        difference(a, plain(16, 16))


def test_enlarge_keeps_the_shape_and_never_shrinks() -> None:
    assert enlarge(plain(32, 16)).size == (TILE, TILE // 2)
    assert enlarge(plain(TILE + 5, 10)).size == (TILE + 5, 10)


def test_sheet_places_every_image_below_its_title() -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (200, 30, 200)]
    tiles = [(f"image {number}", plain(colour=colour)) for number, colour in enumerate(colours)]
    sheet = np.asarray(contact_sheet(tiles, columns=3))
    assert sheet.shape[1] == 2 * MARGIN + 3 * TILE + 2 * GAP
    tops = []
    for number, colour in enumerate(colours):
        rows, columns = np.nonzero((sheet == colour).all(axis=-1))
        assert len(rows) == TILE * TILE
        assert columns.min() == MARGIN + (number % 3) * (TILE + GAP)
        tops.append(rows.min())
        title = sheet[rows.min() - 30 : rows.min() - 4, columns.min() : columns.max()]
        assert title.min() < 100  # dark ink
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
    assert all((sheet[edge] == PAPER).all() for edge in (0, -1))


def test_sheet_has_cells_of_one_size_and_breaks_long_lines() -> None:
    tall, wide = plain(16, 32), plain(32, 16)
    sheet = contact_sheet([("a", tall), ("b", wide)], 2)
    assert sheet.width == 2 * MARGIN + 2 * TILE + GAP
    long = contact_sheet([("a", tall), ("many words " * 8, wide)], 2)
    assert long.height > sheet.height and long.width == sheet.width
    headed = contact_sheet([("a", tall), ("b", wide)], 2, ["a large heading", "and a line " * 30])
    assert headed.height > sheet.height + 60 and headed.width == sheet.width


def test_sheet_refuses_nothing() -> None:
    with pytest.raises(UsageError, match="0 images"):
        contact_sheet([], 2)
    with pytest.raises(UsageError, match="0 columns"):
        contact_sheet([("a", plain())], 0)


def test_metadata_round_trip_in_any_script(tmp_path: Path) -> None:
    written = {"prompt": "ein Café, 赤い円\nsecond line", "seed": "5", "empty": ""}
    save_image(plain(), tmp_path / "x.png", written)
    assert read_metadata(tmp_path / "x.png") == written
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(plain()))


def test_truncated_png_is_refused(tmp_path: Path) -> None:
    save_image(plain(), tmp_path / "x.png", {"prompt": "x" * 500})
    for size in (10, 60, 300):
        path = tmp_path / f"{size}.png"
        path.write_bytes((tmp_path / "x.png").read_bytes()[:size])
        with pytest.raises(UsageError, match=rf"{size}\.png"):
            read_metadata(path)
