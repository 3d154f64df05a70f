"""Models with their weights, from whatever holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepvar.checkpoints.assign import adapt, fill_module
from stepvar.checkpoints.reading import read_state
from stepvar.checkpoints.sources import Source, find_outline, find_source
from stepvar.errors import CheckpointError, UsageError
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
    model = empty_model(source).to(dtype=dtype)
    text_encoder = empty_text_encoder(source)
    for part in source.family.parts:
        fill_part(getattr(model, part), source, part)
    if text_encoder is not None:
        fill_part(text_encoder, source, "text_encoder")
    return LoadedModel(source.name, source.family.name, _frozen(model), _frozen(text_encoder), dict(source.defaults))


def meta_model(name: str | Path, variant: str | None = None) -> LoadedModel:
    """A model without its weights, on the meta device: enough to plan generations, and nothing is fetched.

    Raises:
        UsageError, CheckpointError: as :func:`load_model`.
    """
    source = find_outline(name, variant)
    return LoadedModel(source.name, source.family.name, empty_model(source), None, dict(source.defaults))


def fill_part(module: nn.Module, source: Source, part: str) -> None:
    """Gives one part of a model its weights.

    Raises:
        CheckpointError: see :func:`load_model`.
    """
    path = source.parts[part]
    weights = read_state(path)
    if part in source.family.parts:
        weights = adapt(weights, module, source.family.parts[part], str(path))
    fill_module(module, weights, str(path))


def empty_model(source: Source) -> Any:
    """The model on the meta device: shapes without memory.

    Raises:
        CheckpointError: if its configuration describes none.
    """
    return _build(source, source.family.build, source.config)


def empty_text_encoder(source: Source) -> WordEncoder | None:
    """The model's own text encoder, likewise; None if it has none."""
    if source.text_encoder is None:
        return None
    encoder: WordEncoder = _build(source, lambda settings: WordEncoder(**settings), source.text_encoder)
    return encoder


def _build(source: Source, build: Any, settings: Any) -> Any:
    try:
        return build_on_meta(build, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{source.about}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source.about}: does not describe a model ({error!r}); fetch it again") from error


def _frozen(module: Any) -> Any:
    return None if module is None else module.eval().requires_grad_(False)
