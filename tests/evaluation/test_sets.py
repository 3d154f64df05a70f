"""Distances between sets of saved pictures, with features simple enough to check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE, noise_floor
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.frames import write_frames
from stepvar.evaluation.metrics.distribution import frechet_distance
from stepvar.evaluation.metrics.sets import INCEPTION, LITE0, compare_sets, read_sets, reference_files


def colours(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.mean(dim=(2, 3))


def write_set(
    folder: RunFolder, label: str, generator: np.random.Generator, shift: int, sides: list[int]
) -> torch.Tensor:
    """Plain pictures of random colours, of several sizes; their colours."""
    found = generator.integers(20, 120, size=(len(sides), 3)) + shift
    for number, (colour, side) in enumerate(zip(found, sides, strict=True)):
        path = folder.place("images", label) / f"{number:05}" / "0000.png"
        write_frames(np.broadcast_to(colour.astype(np.uint8), (1, side, side, 3)).copy(), path)
        row = {"method": label, "prompt": f"{number:05}", "seed": 0, "image": path.relative_to(folder.path).as_posix()}
        folder.add([row])
    return torch.from_numpy(found / 255)


def test_distances_are_those_of_the_features(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = RunFolder.open(tmp_path / "run", {})
    sides = [8] * 19 + [12, 8]  # more than one batch, and a picture of another size in between
    dense = write_set(folder, "dense", generator, 0, sides)
    other = write_set(folder, "floor-1", generator, 60, sides)
    compare_sets(folder, [DENSE, noise_floor(1)], {INCEPTION: colours}, torch.device("cpu"))
    found = read_sets(folder)
    assert found["dense"] == {} and set(found["floor-1"]) == {"FID to dense", "KID to dense"}
    wanted = frechet_distance(other, dense)
    assert found["floor-1"]["FID to dense"] == pytest.approx(wanted, rel=1e-4) and wanted > 0.1
    real = reference_files(folder.path / "images" / "dense")
    compare_sets(folder, [DENSE, noise_floor(1)], {INCEPTION: colours}, torch.device("cpu"), real)
    assert read_sets(folder)["dense"]["FID"] == pytest.approx(0, abs=1e-6)
    assert read_sets(folder)["floor-1"]["FID"] == pytest.approx(wanted, rel=1e-4)
    lite0 = {INCEPTION: colours, LITE0: colours}
    compare_sets(folder, [DENSE, noise_floor(1)], lite0, torch.device("cpu"), real)
    both = read_sets(folder)["floor-1"]
    assert both["Lite0-KID"] == both["KID"] and both["Lite0-KID to dense"] == both["KID to dense"]
    assert not any(name.startswith("Lite0-FID") for name in both)


def test_a_reference_needs_pictures(tmp_path: Path) -> None:
    assert read_sets(RunFolder.open(tmp_path / "run", {})) == {}
    with pytest.raises(UsageError, match="has 0 images; give a folder with real ones"):
        reference_files(tmp_path)
