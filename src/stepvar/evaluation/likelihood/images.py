"""The images of an evaluation of likelihood: a folder with captions or without, or renders of the embedded domain."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.metrics.sets import SUFFIXES
from stepvar.evaluation.prompts import load_prompts
from stepvar.evaluation.scenes.grammar import Scene
from stepvar.evaluation.scenes.render import render
from stepvar.media.images import read_image
from stepvar.utils.reading import parse_json, read_text

NAMES = ("file_name", "image")
CAPTIONS = ("text", "caption", "label")
"""Columns of a table of captions; those of Hugging Face's ``imagefolder`` come first."""


@dataclass(frozen=True)
class GivenImage:
    """One image.

    Attributes:
        name: unique; its path in the folder.
        caption: the prompt or class that the model is given; None: unconditional.
        file, scene: where it comes from: one of them is there.
        seed: of a render.
    """

    name: str
    caption: str | None = None
    file: Path | None = None
    scene: Scene | None = None
    seed: int = 0

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """(3, H, W) in [-1, 1] at a width and height: the middle of the image, resized (Lanczos)."""
        if self.scene is not None:
            return render([self.scene], [self.seed], size[1], size[0])[0]
        assert self.file is not None
        fitted = ImageOps.fit(read_image(self.file), size, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class GivenImages:
    """Images, and where they come from."""

    source: str
    images: tuple[GivenImage, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captioned(self) -> bool:
        return self.images[0].caption is not None

    def limited(self, limit: int | None) -> GivenImages:
        """So many images, evenly spread: neighbours in a folder are often alike."""
        if limit is None or limit >= len(self):
            return self
        chosen = [place * len(self) // limit for place in range(limit)]
        return GivenImages(self.source, tuple(self.images[place] for place in chosen))


def load_images(source: str, captions: Path | None = None) -> GivenImages:
    """Images by where they come from.

    Args:
        source: a folder of images; or ``scenes``, ``scenes:64``: renders of held-out scenes with their captions.
        captions: a table with a row per image of the folder, ``.csv`` or ``.jsonl``, as in Hugging Face's
            ``imagefolder``: ``file_name``, and ``text``, the prompt or the class. Images that it does not name are left
            out. None: images have no captions.

    Raises:
        UsageError: if there is no such thing, or the table does not fit the folder.
    """
    if source.partition(":")[0] == "scenes":
        if captions is not None:
            raise UsageError("captions: scenes bring their own; leave them out")
        prompts = load_prompts(source).prompts
        return GivenImages(
            source, tuple(GivenImage(one.name, one.text, scene=one.scene, seed=n) for n, one in enumerate(prompts))
        )
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(f"images {source!r}: no such folder; give one, or 'scenes'")
    files = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in SUFFIXES)
    found = {file.relative_to(folder).as_posix(): file for file in files}
    if not found:
        raise UsageError(f"images {source!r}: has no image ({', '.join(SUFFIXES)}); give a folder that has some")
    if captions is None:
        return GivenImages(source, tuple(GivenImage(name, file=file) for name, file in found.items()))
    table = read_captions(captions)
    named = [GivenImage(name, table[name], file) for name, file in found.items() if name in table]
    if not named:
        raise UsageError(
            f"captions {captions}: names none of the images of {source}, such as {next(iter(found))!r}; "
            f"its column {NAMES[0]} holds paths in that folder"
        )
    return GivenImages(source, tuple(named))


def read_captions(path: Path) -> dict[str, str]:
    """Caption by name of the image.

    Raises:
        UsageError: if it cannot be read as a table of captions.
    """
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        rows = [_row(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    elif path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        raise UsageError(f"captions {path}: must end in .csv or .jsonl")
    found = {}
    for number, row in enumerate(rows, 1):
        name, caption = _first(row, NAMES), _first(row, CAPTIONS)
        if not name or not caption:
            raise UsageError(f"captions {path}: row {number} needs {NAMES[0]} and {CAPTIONS[0]}, neither of them empty")
        found[name] = caption
    return found


def _row(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"captions {path}: line {number} is no JSON object; give one per line")
    return row


def _first(row: dict[str, object], names: Sequence[str]) -> str:
    """The first of some columns that is there, as text."""
    return next((str(row[name]).strip() for name in names if row.get(name) is not None), "")
