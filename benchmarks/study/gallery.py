"""The few pictures that a study keeps: the same prompts drawn by every method at one budget, and what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.study.candidates import ABLATED, BUDGETS, Entry
from stepvar.core.plan import Plan
from stepvar.core.report import Recorder
from stepvar.core.noise import SeededNoise
from stepvar.generation import generate
from stepvar.media.sheets import contact_sheet, enlarge, kept_overlay
from stepvar.models.inputs import Subject
from stepvar.output import to_images
from stepvar.pipeline import Pipeline
from stepvar.utils.files import atomic_path

DENSE_KEY = "dense/dense"
SHOWN, SIDE = 4, 208
"""Prompts shown, and pixels of a picture on a sheet."""


@dataclass
class Gallery:
    """Keeps the first pictures of the first batch.

    Attributes:
        entries: the methods that are shown.
        kept: their pictures, by label of the candidate and budget.
    """

    entries: Sequence[Entry]
    kept: dict[str, list[Image.Image]] = field(default_factory=dict)

    def look(self, number: int, key: str, pictures: Tensor) -> None:
        if number == 0 and (key == DENSE_KEY or any(entry.key == key for entry in self.entries)):
            self.kept[key] = pictures_of(pictures[:SHOWN])

    def write(self, folder: Path) -> list[Path]:
        """One sheet per budget; a row per prompt, dense first, then methods that are not tunable."""
        if DENSE_KEY not in self.kept:
            return []
        paths = []
        for budget in BUDGETS:
            columns = {"dense": self.kept[DENSE_KEY]}
            for entry in self.entries:
                if entry.budget in (budget, None) and entry.key in self.kept:
                    name = f"{entry.candidate.label} ({entry.speedup:.2f}x)"
                    columns[name] = self.kept[entry.key]
            rows = len(self.kept[DENSE_KEY])
            tiles = [(name, pictures[row]) for row in range(rows) for name, pictures in columns.items()]
            sheet = contact_sheet([(name, enlarge(image, SIDE)) for name, image in tiles], len(columns))
            paths.append(folder / f"pictures-{budget}.jpg")
            save_jpeg(sheet, paths[-1])
        return paths


def pictures_of(pictures: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] as images."""
    images: list[Image.Image] = to_images(2 * pictures - 1, "pil")
    return images


def save_jpeg(image: Image.Image, path: Path, longest: int = 4000) -> None:
    """Writes a sheet, made smaller if it is very large: it is looked at, not measured."""
    if max(image.size) > longest:
        image.thumbnail((longest, longest))
    with atomic_path(path) as temporary:
        image.save(temporary, format="JPEG", quality=88)


def kept_maps(pipe: Pipeline, plan: Plan, prompts: Sequence[str], entries: Sequence[Entry], path: Path) -> None:
    """A sheet of what each method kept at the last scale, over the picture that it drew."""
    tiles = []
    shown = [entry for entry in entries if entry.budget == ABLATED]
    for row, prompt in enumerate(prompts):
        condition = pipe.conditioner.request(Subject(prompt=prompt), 1).condition()
        for entry in shown:
            recorder = Recorder(pipe.device)
            state = generate(pipe.model, condition, 1, plan, entry.candidate.method, SeededNoise([row]), recorder)
            image = to_images(pipe.model.decode(state), "pil")[0]
            maps = recorder.kept_maps()
            if maps:
                step, kept = maps[-1]
                label = f"{entry.candidate.label}: {100 * float(kept[0].mean()):.0f} % of {step.grid}"
                tiles.append((label, enlarge(kept_overlay(image, np.asarray(kept[0])), SIDE)))
    if tiles:
        save_jpeg(contact_sheet(tiles, len(tiles) // len(prompts)), path)
