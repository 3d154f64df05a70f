"""Model folders: ``config.json`` and one safetensors file per part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepvar.errors import CheckpointError, UsageError
from stepvar.files import atomic_path, write_text
from stepvar.models.infinity import Infinity, InfinityConfig
from stepvar.text import WordEncoder

EMBEDDED: tuple[str, ...] = ("scenes",)
"""Models that ship inside the package."""


@dataclass
class LoadedModel:
    """What a folder holds.

    Attributes:
        name: of the model, for reports.
        model: the transformer and its tokenizer.
        text_encoder: from prompts to features.
        defaults: sampling settings to use where the caller gives none.
    """

    name: str
    model: Infinity
    text_encoder: WordEncoder
    defaults: dict[str, Any]


def find_model(name: str | Path) -> Path:
    """The folder of an embedded model, or the local folder given.

    Raises:
        UsageError: if there is no such model.
    """
    if str(name) in EMBEDDED:
        return Path(str(files("stepvar") / "weights" / str(name)))
    folder = Path(name)
    if folder.is_dir():
        return folder
    raise UsageError(f"model {str(name)!r}: unknown; use {', '.join(EMBEDDED)} or a local folder")


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        CheckpointError: if it is missing or not valid.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the folder again") from None
    if not isinstance(config, dict) or config.get("family") != "infinity":
        raise CheckpointError(f"{path}: family must be 'infinity'")
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; fetch the model folder again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); fetch it again") from None


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], source: str, ignorable: Iterable[str] = ()) -> None:
    """Copies weights into a module, strictly.

    Args:
        source: named in errors.
        ignorable: names that a file may hold although the module does not.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(weights))
    unexpected = sorted(set(weights) - set(own) - set(ignorable))
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if own[name].shape != weights[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{source}: does not fit the model; {'; '.join(problems)}")
    module.load_state_dict({name: weights[name].to(own[name].dtype) for name in own}, assign=True)


def load_model(name: str | Path) -> LoadedModel:
    """Loads a model folder in float32 on the CPU."""
    folder = find_model(name)
    config = read_config(folder)
    model, text_encoder = _empty_modules(config, folder / "config.json")
    for part, module in (
        ("transformer", model.transformer),
        ("tokenizer", model.tokenizer),
        ("text_encoder", text_encoder),
    ):
        path = folder / f"{part}.safetensors"
        fill_module(module, read_weights(path), str(path))
    model.eval().requires_grad_(False)
    text_encoder.eval().requires_grad_(False)
    return LoadedModel(config.get("name", folder.name), model, text_encoder, config.get("defaults", {}))


def _empty_modules(config: Mapping[str, Any], path: Path) -> tuple[Infinity, WordEncoder]:
    try:
        with torch.device("meta"):
            return Infinity(InfinityConfig.from_dict(config["model"])), WordEncoder(**config["text_encoder"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not describe a model ({error!r}); fetch it again") from error


def save_model(
    folder: Path,
    name: str,
    model: Infinity,
    text_encoder: WordEncoder,
    text_config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a folder that :func:`load_model` reads; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in (
        ("transformer", model.transformer),
        ("tokenizer", model.tokenizer),
        ("text_encoder", text_encoder),
    ):
        save_weights(folder / f"{part}.safetensors", module.state_dict(), dtype)
    config = {
        "family": "infinity",
        "name": name,
        "model": model.config.to_dict(),
        "text_encoder": dict(text_config),
        "defaults": dict(defaults),
    }
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def save_weights(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes tensors in ``dtype`` to a safetensors file, whole or not at all."""
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary)
