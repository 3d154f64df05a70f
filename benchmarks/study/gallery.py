"""Sheets of the images that a study keeps: the same prompts with every method at one budget, and what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.study.candidates import ABLATED, BUDGETS
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.media.sheets import contact_sheet, enlarge
from stepvar.utils.files import atomic_path

SIDE, LONGEST = 208, 2400
"""Pixels of an image on a sheet, and of a sheet's longer side."""


def write_sheets(folder: RunFolder, images: Path) -> list[Path]:
    """Writes one sheet per budget, a row per prompt with dense first, and one of the tokens that were kept."""
    written = []
    for budget in BUDGETS:
        columns = {DENSE.label: "dense"} | {
            key: f"{entry['label']} ({entry['speedup']:.2f}x)"
            for key, entry in _methods(folder).items()
            if entry["budget"] in (budget, None)
        }
        tiles = _tiles(folder, "images", columns, "*/0000.png")
        if tiles:
            written.append(images / f"study-pictures-{budget}.jpg")
            _save(tiles, len(columns), written[-1])
    columns = {key: entry["label"] for key, entry in _methods(folder).items() if entry["budget"] == ABLATED}
    tiles = _tiles(folder, "kept", columns, "*.png")
    if tiles:
        written.append(images / "study-kept.jpg")
        _save(tiles, len(columns), written[-1])
    return written


def _methods(folder: RunFolder) -> Mapping[str, Mapping[str, Any]]:
    entries: Mapping[str, Mapping[str, Any]] = folder.settings["entries"]
    return {key: entry for key, entry in entries.items() if entry["group"] == "methods"}


def _tiles(folder: RunFolder, kind: str, columns: Mapping[str, str], pattern: str) -> list[tuple[str, Image.Image]]:
    """The images of one kind, row by row; none unless every column has as many."""
    rows = list(zip(*(sorted(folder.place(kind, key).glob(pattern)) for key in columns), strict=True))
    return [
        (title, enlarge(Image.open(file).convert("RGB"), SIDE))
        for row in rows
        for title, file in zip(columns.values(), row, strict=True)
    ]


def _save(tiles: list[tuple[str, Image.Image]], columns: int, path: Path) -> None:
    """Writes a sheet, made smaller if it is very large: it is looked at, not measured."""
    sheet = contact_sheet(tiles, columns)
    sheet.thumbnail((LONGEST, LONGEST))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)
