"""Distances between sets of saved pictures by a network's features: FID and KID as they are usually meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.distribution import Moments, frechet_distance, kernel_distance
from stepvar.evaluation.drawing import DENSE, Candidate
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.frames import read_frames, to_tensor
from stepvar.evaluation.learned import Features
from stepvar.utils.files import write_text

FILE = "sets.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 16


def reference_files(folder: Path) -> list[Path]:
    """The pictures of a folder.

    Raises:
        UsageError: if it has fewer than two.
    """
    files = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise UsageError(f"reference {str(folder)!r}: has {len(files)} pictures; give a folder with real ones")
    return files


def compare_sets(
    folder: RunFolder,
    candidates: Sequence[Candidate],
    features: Features,
    device: torch.device,
    reference: Sequence[Path] = (),
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Writes the distances of every candidate's pictures to dense's, and to real ones if there are any.

    Args:
        reference: files of real pictures.
        tick: called after each set.
    """
    real = _features([partial(_frame, path) for path in reference], features, device) if reference else None
    own: dict[str, Tensor] = {}
    for candidate in candidates:
        rows = [row for (method, _, _), row in sorted(folder.rows.items()) if method == candidate.label]
        own[candidate.label] = _features([partial(_middle, folder, row) for row in rows], features, device)
        tick()
    found: dict[str, dict[str, float]] = {}
    for label, values in own.items():
        found[label] = {}
        if label != DENSE.label and len(values) > 1:
            found[label] |= _distances(values, own[DENSE.label], " to dense", matched=True)
        if real is not None and len(values) > 1:
            found[label] |= _distances(values, real, "")
    write_text(folder.path / FILE, json.dumps(found, indent=1) + "\n")


def read_sets(folder: RunFolder) -> dict[str, dict[str, float]]:
    """What :func:`compare_sets` wrote; empty if it was not run."""
    path = folder.path / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _distances(values: Tensor, other: Tensor, suffix: str, matched: bool = False) -> dict[str, float]:
    return {
        f"FID{suffix}": frechet_distance(Moments.of(values), Moments.of(other)),
        f"KID{suffix}": kernel_distance(values, other, matched),
    }


def _middle(folder: RunFolder, row: dict[str, str]) -> np.ndarray:
    """The picture, or the middle frame of a video."""
    frames = read_frames(folder.path / row["image"])
    return frames[len(frames) // 2]


def _frame(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _features(pictures: Sequence[Callable[[], np.ndarray]], features: Features, device: torch.device) -> Tensor:
    """Features (pictures, C); pictures of one size go together."""
    found: list[Tensor] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        if waiting:
            found.append(features(to_tensor([picture[None] for picture in waiting], device)[:, 0]).double().cpu())
            waiting.clear()

    for picture in pictures:
        array = picture()
        if waiting and (len(waiting) == BATCH or waiting[0].shape != array.shape):
            flush()
        waiting.append(array)
    flush()
    return torch.cat(found)
