"""Reading goldens: pairs ``NAME.json`` and ``NAME.safetensors`` of what an original implementation computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stepvar.checkpoints import fill_module
from stepvar.conformance.weights import EXCLUDED, Rule, rule_weight, rule_weights
from stepvar.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class Golden:
    """One golden.

    Attributes:
        path: of the JSON file.
        about: what the JSON file says.
        named: whether the user named this file, rather than a folder that holds it.
        tensors: what was computed; empty until :func:`read_tensors`.
    """

    path: Path
    about: dict[str, Any]
    named: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run; goldens of single modules have them at the top level."""
        config = self.about.get("config", self.about)
        return config if isinstance(config, dict) else {}

    def setting(self, name: str) -> Any:
        """One setting of the run, from its configuration or from beside it.

        Raises:
            CheckpointError: if it is not there.
        """
        for settings in (self.config, self.about):
            if name in settings:
                return settings[name]
        raise CheckpointError(f"{self.path}: lacks the setting {name!r}; copy the golden again")

    def tensor(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: if it is not there.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: lacks the tensor {name!r}; copy the golden again")
        return self.tensors[name]


def default_goldens() -> Path:
    """The goldens of the project's own tests, beside the source in a checkout.

    Raises:
        UsageError: if the package was installed without them.
    """
    folder = Path(__file__).resolve().parents[3] / "tests" / "goldens"
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: the package was installed without its goldens; run from a checkout of the source, "
            "or name golden files or folders"
        )
    return folder


def find_goldens(paths: Sequence[str | Path]) -> list[Golden]:
    """The goldens named, and those in the folders named and below, without their tensors.

    Raises:
        CheckpointError: if a file is missing, unreadable or not a golden.
        UsageError: if a folder holds no golden.
    """
    found: list[Golden] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _in_folder(path)
            continue
        if path.suffix == ".safetensors":
            path = path.with_suffix(".json")
        about = _read_json(path)
        if not _is_golden(about):
            raise CheckpointError(f"{path}: is no golden (it lists no tensors); name one, or a folder of them")
        found.append(Golden(path, about, named=True))
    return found


def _in_folder(folder: Path) -> list[Golden]:
    read = [(path, _read_json(path)) for path in sorted(folder.rglob("*.json"))]
    found = [Golden(path, about, named=False) for path, about in read if _is_golden(about)]
    if not found:
        raise UsageError(f"{folder}: holds no goldens; name a folder of NAME.json and NAME.safetensors pairs")
    return found


def _is_golden(about: Any) -> bool:
    return isinstance(about, dict) and isinstance(about.get("tensors"), dict)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; check the path or copy the golden again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the golden again") from None


def _listed_shape(entry: Any) -> Any:
    """The shape in an entry of the list of tensors: ``[dtype, shape]`` or ``{"dtype": ..., "shape": ...}``."""
    if isinstance(entry, dict):
        return entry.get("shape")
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def read_tensors(golden: Golden) -> Golden:
    """The golden with its tensors.

    Raises:
        CheckpointError: if their file is missing or damaged, or lacks a tensor that the JSON file lists.
    """
    path = golden.path.with_suffix(".safetensors")
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a golden is a pair of files, copy both") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); copy the golden again") from None
    for name, entry in golden.about["tensors"].items():
        shape = _listed_shape(entry)
        if name not in tensors or list(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name} of shape {shape} is missing; the pair does not belong together, "
                "copy both files again"
            )
    return Golden(golden.path, golden.about, golden.named, tensors)


def fill_golden(
    module: nn.Module, golden: Golden, source: str, listed: str | None = None, rule: Rule = rule_weight
) -> None:
    """Gives a module the weights of a golden, made by the rule.

    Args:
        source: named in errors.
        listed: the entry of the JSON file that lists the weights' names and shapes, if there is one.
        rule: makes them.

    Raises:
        CheckpointError: if the module has other weights than the golden lists.
    """
    names = {name: entry[0] for name, entry in golden.about.get(listed, {}).items()} if listed else {}
    shapes = names or {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = rule_weights(shapes, golden.setting("seed"), rule)
    # Constants that an original stores and that are no part of our model.
    ignorable = [name for name in weights if name.endswith(EXCLUDED)]
    fill_module(module, weights, source, ignorable)
