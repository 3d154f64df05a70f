"""Models with their weights, from whatever holds them: strictly, and without a second copy of all in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.checkpoints.reading import Weights, read_state
from stepvar.checkpoints.sources import Source, describing, find_outline, find_source
from stepvar.errors import CheckpointError, UsageError
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
        text_config: the arguments that made the model's own encoder.
    """

    name: str
    family: str
    model: Any
    text_encoder: WordEncoder | None
    defaults: dict[str, Any]
    text_config: Mapping[str, Any] | None = None


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
    encoder, defaults = modules.get("text_encoder"), dict(source.defaults)
    return LoadedModel(source.name, source.family.name, model, encoder, defaults, source.text_encoder)


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
    """The weights of one part as its module knows them, checked against it.

    They have the module's names, in the file's order, without what is ignorable, and tables cut to the module's rows.
    """
    path, rules = source.parts[part], source.family.parts.get(part, Part())
    own, weights = module.state_dict(), read_state(path)
    stored_to_own = {stored: name for name, stored in rules.rename(weights.keys(), own.keys()).items()}
    names = {
        stored_to_own.get(stored, stored): stored
        for stored in weights
        if stored in own or stored in stored_to_own or not _matches(stored, rules.ignorable)
    }
    meta = {name: weights.meta[stored] for name, stored in names.items()}
    for name in rules.tables:
        if name in meta and name in own:
            table, rows = meta[name], len(own[name])
            if table.shape[1:] == own[name].shape[1:] and len(table) < rows:
                raise CheckpointError(
                    f"{path}: {name} has {len(table)} rows, the model needs {rows}; "
                    "state the length that it was trained with in a config.json beside it"
                )
            meta[name] = table[:rows]
    _check_fit(own, meta, str(path))

    def read(name: str) -> Tensor:
        tensor = weights[names[name]]
        return tensor[: len(meta[name])] if name in rules.tables else tensor

    def pair(name: str) -> tuple[Tensor, Tensor]:
        matrix, scales = weights.packed[names[name]]()
        return (matrix[: len(meta[name])], scales[: len(meta[name])]) if name in rules.tables else (matrix, scales)

    return Weights(meta, read, {name: partial(pair, name) for name in names if names[name] in weights.packed})


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str, ignorable: Collection[str] = ()
) -> None:
    """Checks that weights have the names and shapes of a module's state."""
    misshapen = {
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    }
    problems = {
        "missing": own.keys() - weights.keys(),
        "unexpected": {name for name in weights.keys() - own.keys() if not _matches(name, ignorable)},
        "misshapen": misshapen,
    }
    said = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in problems.items()
        if names
    ]
    if said:
        raise CheckpointError(f"{source}: does not fit the model; {'; '.join(said)}")


def _as_weight(stored: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """A copy in the type of a module's own tensor.

    Raises:
        CheckpointError: for whole numbers in place of real ones (quantised, without their scales), and for NaN or
            infinity (a training that diverged, or a number beyond the type).
    """
    if dtype.is_floating_point and (not stored.is_floating_point() or stored.element_size() < 2):  # fp8, too
        raise CheckpointError(f"{what} holds {stored.dtype}; quantised weights cannot be read without their scales")
    tensor = stored.to(dtype, copy=True, memory_format=torch.contiguous_format)
    # One pass without a copy: a sum is not finite if a number is not.
    if dtype.is_floating_point and not tensor.is_meta and not tensor.sum(dtype=torch.float32).isfinite():
        raise CheckpointError(f"{what} holds NaN or infinity as {dtype}; take another file, or a wider dtype")
    return tensor


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], source: str, ignorable: Collection[str] = ()) -> None:
    """Gives a module its weights, strictly.

    Each tensor is copied into the type of the module's own, one after the other, and takes its place: a module on
    the meta device needs no memory before, and no more than one tensor is there twice.

    Args:
        source: named in errors.
        ignorable: patterns of names that a file may hold although the module does not.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors; or naming one that holds whole numbers in
            place of weights, or values that are not finite.
    """
    own = module.state_dict()
    _check_fit(own, weights.meta if isinstance(weights, Weights) else weights, source, ignorable)
    filled = {name: _as_weight(weights[name], own[name].dtype, f"{source}: {name}") for name in weights if name in own}
    module.load_state_dict(filled, assign=True)
    # What no file holds would stay without values: a module has to compute it where it is used.
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if empty:
        raise CheckpointError(f"{source}: no file holds the buffers {', '.join(empty)}; they have no values")
