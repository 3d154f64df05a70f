"""The goldens in the package and those of the tests, and copies of them to damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from stepvar.conformance import GoldenResult, verify
from stepvar.conformance.golden import PACKAGED

OWN = Path(__file__).parents[1] / "goldens"
"""Goldens that are too large for the package."""

GOLDENS = {
    path.stem: path.with_suffix(".json") for folder in (PACKAGED, OWN) for path in sorted(folder.glob("*.safetensors"))
}


def run(path: Path | str, **options: Any) -> GoldenResult:
    """The result of one golden, by its path or its name."""
    (result,) = verify([path if isinstance(path, Path) else GOLDENS[path]], **options)
    return result


def copy(folder: Path, name: str, **settings: Any) -> Path:
    """The JSON file of a golden of one's own, with other settings in its configuration."""
    for path in GOLDENS[name].parent.glob(f"{name}.*"):
        shutil.copy(path, folder)
    path = folder / f"{name}.json"
    about = json.loads(path.read_text())
    return edit(path, config=about["config"] | settings) if settings else path


def edit(path: Path, **entries: Any) -> Path:
    """Replaces entries of a golden's JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return path


def tensors_of(path: Path) -> dict[str, Tensor]:
    return load_file(path.with_suffix(".safetensors"))


def put(path: Path, **tensors: Tensor) -> Path:
    """Adds or replaces tensors of a golden, in both files."""
    save_file(tensors_of(path) | tensors, path.with_suffix(".safetensors"))
    listed = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    return edit(path, tensors=json.loads(path.read_text())["tensors"] | listed)
