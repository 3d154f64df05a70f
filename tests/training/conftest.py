"""A recipe of "wardrobe" small enough to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from training.wardrobe.lite0 import EARLY, Lite0
from training.wardrobe.presets import PRESETS
from training.wardrobe.stage import Options

LABELS = ("T-Shirt", "Dress", "Hat", "Pants")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Twelve flat pictures, and an untrained network for the perceptual error."""
    torch.manual_seed(0)
    folder = tmp_path / "photographs"
    folder.mkdir()
    lines = ["image,label,kids"]
    for number in range(12):
        size = (96, 128) if number % 3 else (128, 96)
        Image.new("RGB", size, (20 * number, 90, 200 - 10 * number)).save(folder / f"{number:05d}.png")
        lines.append(f"{number:05d}.png,{LABELS[number % 4]},false")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    lite0 = {k: v for k, v in Lite0(EARLY).state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(lite0, tmp_path / "lite0.safetensors")
    out = tmp_path / "run"
    out.mkdir()
    preset = replace(PRESETS["tiny"], drawn=2, pool=8, checked=1)
    return Options(preset, folder, out, 60.0, torch.device("cpu"), lite0=tmp_path / "lite0.safetensors")
