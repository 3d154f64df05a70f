"""Putting weights into modules, strictly and without a second copy of them all in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from stepvar.checkpoints.reading import Weights
from stepvar.errors import CheckpointError
from stepvar.models.family import Part


def adapt(weights: Weights, module: nn.Module, part: Part, source: str) -> Weights:
    """The weights of a published file as a module knows them, checked against it.

    They have the module's names, in the file's order, without what is ignorable, and tables cut to the module's rows.
    """
    own = module.state_dict()
    stored_to_own = {stored: name for name, stored in part.rename(weights.keys(), own.keys()).items()}
    names = {
        stored_to_own.get(stored, stored): stored
        for stored in weights
        if stored in own or stored in stored_to_own or not _matches(stored, part.ignorable)
    }
    meta = {name: weights.meta[stored] for name, stored in names.items()}
    for name in part.tables:
        if name in meta and name in own:
            table, rows = meta[name], len(own[name])
            if table.shape[1:] == own[name].shape[1:] and len(table) < rows:
                raise CheckpointError(
                    f"{source}: {name} has {len(table)} rows, the model needs {rows}; "
                    "state the length that it was trained with in a config.json beside it"
                )
            meta[name] = table[:rows]
    _check_fit(own, meta, source)

    def read(name: str) -> Tensor:
        tensor = weights[names[name]]
        return tensor[: len(meta[name])] if name in part.tables else tensor

    return Weights(meta, read)


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


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], source: str, ignorable: Collection[str] = ()) -> None:
    """Gives a module its weights, strictly.

    Each tensor is copied into the type of the module's own, one after the other, and takes its place: a module on
    the meta device needs no memory before, and no more than one tensor is there twice.

    Args:
        source: named in errors.
        ignorable: patterns of names that a file may hold although the module does not.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors.
    """
    own = module.state_dict()
    _check_fit(own, weights.meta if isinstance(weights, Weights) else weights, source, ignorable)
    filled = {
        name: weights[name].to(own[name].dtype, copy=True, memory_format=torch.contiguous_format)
        for name in weights
        if name in own
    }
    module.load_state_dict(filled, assign=True)
    # What no file holds would stay without values: a module has to compute it where it is used.
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if empty:
        raise CheckpointError(f"{source}: no file holds the buffers {', '.join(empty)}; they have no values")
