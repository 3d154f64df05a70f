"""Distances between sets of saved images by a network's features: FID and KID as they are usually meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE, Candidate
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.frames import Frames, to_tensor
from stepvar.evaluation.metrics.distribution import frechet_distance, kernel_distance
from stepvar.evaluation.metrics.learned import Features
from stepvar.media.images import read_image
from stepvar.utils.files import write_text
from stepvar.utils.reading import read_json

FILE = "sets.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 16
INCEPTION, LITE0 = "inception", "lite0"
"""Networks whose features sets are compared in."""


def reference_files(folder: Path) -> list[Path]:
    """The images of a folder.

    Raises:
        UsageError: if it has fewer than two.
    """
    files = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise UsageError(f"reference {str(folder)!r}: has {len(files)} images; give a folder with real ones")
    return files


def compare_sets(
    folder: RunFolder,
    candidates: Sequence[Candidate],
    features: Mapping[str, Features],
    device: torch.device,
    reference: Sequence[Path] = (),
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Writes the distances of every candidate's images to dense's, and to real ones if there are any.

    Args:
        features: :data:`INCEPTION`, :data:`LITE0` or both.
        reference: files of real images.
        tick: called after each set.
    """
    found: dict[str, dict[str, float]] = {candidate.label: {} for candidate in candidates}
    for name, network in features.items():
        for label, distances in _compared(folder, candidates, name, network, device, reference, tick).items():
            found[label] |= distances
    write_text(folder.path / FILE, json.dumps(found, indent=1) + "\n")


def _compared(
    folder: RunFolder,
    candidates: Sequence[Candidate],
    name: str,
    features: Features,
    device: torch.device,
    reference: Sequence[Path],
    tick: Callable[[], None],
) -> dict[str, dict[str, float]]:
    """The distances in the features of one network, by label."""
    real = _features(reference, features, device) if reference else None
    own: dict[str, Tensor] = {}
    for candidate in candidates:
        rows = [row for (method, _, _), row in sorted(folder.rows.items()) if method == candidate.label]
        files = [folder.image(row) for row in rows]
        if missing := [row["prompt"] for row, file in zip(rows, files, strict=True) if file is None]:
            raise UsageError(f"{folder.path}: the image of {missing[0]} is missing; remove its row from manifest.jsonl")
        own[candidate.label] = _features([file for file in files if file is not None], features, device)
        tick()
    found: dict[str, dict[str, float]] = {}
    for label, values in own.items():
        found[label] = {}
        if label != DENSE.label and len(values) > 1:
            found[label] |= _distances(name, values, own[DENSE.label], " to dense", matched=True)
        if real is not None and len(values) > 1:
            found[label] |= _distances(name, values, real, "")
    return found


def read_sets(folder: RunFolder) -> dict[str, dict[str, float]]:
    """What :func:`compare_sets` wrote; empty if it was not run."""
    path = folder.path / FILE
    return read_json(path) if path.exists() else {}


def _distances(name: str, values: Tensor, other: Tensor, suffix: str, matched: bool = False) -> dict[str, float]:
    if name == LITE0:  # whose 1280 channels need more images for a covariance than there usually are
        return {f"Lite0-KID{suffix}": kernel_distance(values, other, matched)}
    return {
        f"FID{suffix}": frechet_distance(values, other),
        f"KID{suffix}": kernel_distance(values, other, matched),
    }


def _features(files: Sequence[Path], features: Features, device: torch.device) -> Tensor:
    """Features (images, C); neighbours of one size go together."""
    found = []
    for _, images in groupby(map(_read, files), key=lambda image: image.shape):
        while batch := list(islice(images, BATCH)):
            found.append(features(to_tensor(batch, device)[:, 0]).double().cpu())
    return torch.cat(found)


def _read(path: Path) -> Frames:
    return np.asarray(read_image(path))[None]
