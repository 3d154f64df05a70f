"""The project's own model folders: ``config.json``, and one safetensors file (or shards with an index) per part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stepvar.checkpoints.int8 import pack
from stepvar.checkpoints.reading import INDEX_SUFFIX
from stepvar.errors import CheckpointError
from stepvar.models.registry import FAMILIES, family_of_model
from stepvar.utils.files import atomic_path, write_text

CONFIG = "config.json"


def part_path(folder: Path, part: str) -> Path:
    """The file of a part, or the index of its shards."""
    index = folder / f"{part}.safetensors{INDEX_SUFFIX}"
    return index if index.is_file() else folder / f"{part}.safetensors"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is one of the project's own, rather than one with the files of a release."""
    return part_path(folder, "transformer").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        CheckpointError: if it is missing or not valid.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the folder again") from None
    if not isinstance(config, dict) or config.get("family") not in FAMILIES:
        raise CheckpointError(f"{path}: family must be one of {', '.join(map(repr, FAMILIES))}")
    return config


def write_config(
    folder: Path,
    family: str,
    name: str,
    model: Mapping[str, Any],
    defaults: Mapping[str, Any],
    text_encoder: Mapping[str, Any] | None = None,
) -> None:
    """Writes the ``config.json`` of a model folder, whole or not at all."""
    config: dict[str, Any] = {"family": family, "name": name, "model": dict(model)}
    if text_encoder is not None:
        config["text_encoder"] = dict(text_encoder)
    config["defaults"] = dict(defaults)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def save_model(
    folder: Path,
    name: str,
    model: Any,
    text_encoder: nn.Module | None,
    text_config: Mapping[str, Any] | None,
    defaults: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    packed: bool = False,
) -> None:
    """Writes a folder that :func:`~stepvar.checkpoints.load_model` reads; each file whole or not at all.

    Args:
        model: of any family.
        text_encoder: an encoder of the model's own; None where it has none, or a public one.
        text_config: the arguments that made the encoder.
        defaults: sampling settings to use where the caller gives none.
        packed: store matrices in eight bits, see :mod:`stepvar.checkpoints.int8`.

    Raises:
        UsageError: if the model is of no family.
        OutputError: if the folder cannot be written.
    """
    family = family_of_model(model)
    parts: dict[str, nn.Module] = {part: getattr(model, part) for part in family.parts}
    if text_encoder is not None:
        parts["text_encoder"] = text_encoder
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in parts.items():
        save_weights(folder / f"{part}.safetensors", module.state_dict(), dtype, packed)
    write_config(folder, family.name, name, model.config.to_dict(), defaults, text_config)


def save_weights(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, packed: bool = False) -> None:
    """Writes tensors in ``dtype`` (or packed to eight bits) to a safetensors file, whole or not at all."""
    if packed:
        stored = pack(weights, dtype)
    else:
        stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary)
