"""Models with their weights, from whatever holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepvar.checkpoints.assign import adapt, fill_module
from stepvar.checkpoints.reading import Weights, read_state
from stepvar.checkpoints.sources import Source, describing, find_outline, find_source
from stepvar.errors import UsageError
from stepvar.models.family import Part
from stepvar.models.meta import build_on_meta
from stepvar.text import WordEncoder


@dataclass
class LoadedModel:
    """A model with its weights, on the CPU.

    Attributes:
        name: of the model, for reports.
        family: its key in :data:`~stepvar.models.registry.FAMILIES`.
        model: of the family's class; its transformer and its tokenizer.
        text_encoder: from prompts to features, where the model has an encoder of its own; the released Infinity
            models use a public one, and VAR models none.
        defaults: sampling settings to use where the caller gives none.
    """

    name: str
    family: str
    model: Any
    text_encoder: WordEncoder | None
    defaults: dict[str, Any]


def load_model(
    name: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
    local_files_only: bool = False,
) -> LoadedModel:
    """Loads a model on the CPU; no more than one tensor of it is in memory twice.

    Args:
        name: an embedded model; a repository on the hub (``"FoundationVision/Infinity"``,
            ``"FoundationVision/var"``); a local folder in the project's own format or with the files of such a
            repository; or the local file, or folder of shards, of a transformer.
        variant: which of several released models; None: the repository's default, or the only one in a folder.
        revision: branch, tag or commit on the hub; None: the main branch.
        dtype: type of the weights of transformer and tokenizer.
        tokenizer: the tokenizer's file, where it does not lie beside the transformer's.
        local_files_only: whether to use the cache of downloads only.

    Raises:
        UsageError: for a name, variant, revision or type that does not exist.
        CheckpointError: if files are missing, damaged, or do not fit the model.
    """
    if not dtype.is_floating_point:
        raise UsageError(f"dtype={dtype}: must be a type of floating-point numbers, such as torch.float32")
    source = find_source(name, variant, revision, tokenizer, local_files_only)
    model, modules = meta_modules(source)
    model = model.to(dtype=dtype)
    for part, module in modules.items():
        fill_module(module, open_part(source, part, module), str(source.parts[part]))
    for module in (model, *modules.values()):
        module.eval().requires_grad_(False)
    return LoadedModel(source.name, source.family.name, model, modules.get("text_encoder"), dict(source.defaults))


def meta_model(name: str | Path, variant: str | None = None) -> LoadedModel:
    """A model without its weights, on the meta device: enough to plan generations, and nothing is fetched.

    Raises:
        UsageError, CheckpointError: as :func:`load_model`.
    """
    source = find_outline(name, variant)
    return LoadedModel(source.name, source.family.name, meta_modules(source)[0], None, dict(source.defaults))


def meta_modules(source: Source) -> tuple[Any, dict[str, Any]]:
    """The model on the meta device (shapes without memory), and the module of each part."""
    with describing(source.about):
        model = build_on_meta(source.family.build, source.config)
        modules = {part: getattr(model, part) for part in source.family.parts}
        if source.text_encoder is not None:
            modules["text_encoder"] = build_on_meta(lambda settings: WordEncoder(**settings), source.text_encoder)
    return model, modules


def open_part(source: Source, part: str, module: nn.Module) -> Weights:
    """The weights of one part under its module's names, checked against it."""
    path = source.parts[part]
    return adapt(read_state(path), module, source.family.parts.get(part, Part()), str(path))
