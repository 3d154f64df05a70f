"""Putting weights into modules, strictly and without a second copy of them all in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from stepvar.checkpoints.reading import Weights, peek
from stepvar.errors import CheckpointError
from stepvar.models.family import Part


class Adapted(Weights):
    """Weights under a module's names, without what is ignorable, tables cut to the module's rows.

    Args:
        names: name of the module: name in the file, in the file's order.
        rows: by name of the module, how many rows to take.
    """

    def __init__(self, weights: Mapping[str, Tensor], names: Mapping[str, str], rows: Mapping[str, int]) -> None:
        super().__init__(names)
        self._weights, self._stored, self._rows = weights, names, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._cut(name, self._weights[self._stored[name]])

    def peek(self, name: str) -> Tensor:
        return self._cut(name, peek(self._weights, self._stored[name]))

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        return tensor[: self._rows[name]] if name in self._rows else tensor


def adapt(weights: Mapping[str, Tensor], module: nn.Module, part: Part, source: str) -> Weights:
    """The weights of a published file as a module knows them, checked against it.

    Args:
        source: named in errors.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors.
    """
    own = module.state_dict()
    stored_to_own = {stored: name for name, stored in part.rename(weights.keys(), own.keys()).items()}
    names = {
        stored_to_own.get(stored, stored): stored
        for stored in weights
        if stored in own or stored in stored_to_own or not _matches(stored, part.ignorable)
    }
    rows = {}
    for name in part.tables:
        if name in names and name in own:
            rows[name] = _table_rows(name, peek(weights, names[name]), own[name], source)
    adapted = Adapted(weights, names, rows)
    check_fit(own, adapted, source)
    return adapted


def _table_rows(name: str, stored: Tensor, own: Tensor, source: str) -> int:
    if stored.shape[1:] == own.shape[1:] and len(stored) < len(own):
        raise CheckpointError(
            f"{source}: {name} has {len(stored)} rows, the model needs {len(own)}; "
            "state the length that it was trained with in a config.json beside it"
        )
    return len(own)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str, ignorable: Collection[str] = ()
) -> None:
    """Checks that weights have the names and shapes of a module's state.

    Args:
        source: named in errors.
        ignorable: patterns of names that a file may hold although the module does not.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors.
    """
    misshapen = []
    for name in weights:  # in the file's order: shards are opened once
        if name in own and (shape := peek(weights, name).shape) != own[name].shape:
            misshapen.append(f"{name} {tuple(shape)} instead of {tuple(own[name].shape)}")
    problems = (
        ("missing", set(own) - set(weights)),
        ("unexpected", {name for name in set(weights) - set(own) if not _matches(name, ignorable)}),
        ("misshapen", set(misshapen)),
    )
    said = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in problems
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
    check_fit(own, weights, source, ignorable)
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
