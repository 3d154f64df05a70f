"""Values whose tensors keep their place in memory, so that a captured graph finds new numbers in them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from stepvar.utils.tensors import map_tensors, tensors_of

Value = TypeVar("Value")


def static_copy(value: Value) -> Value:
    """A copy whose tensors are contiguous and shared with nobody."""
    copied: Value = map_tensors(value, lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format))
    return copied


def copy_into(target: Any, source: Any) -> None:
    """Writes the numbers of one value into the tensors of another of the same signature."""
    for own, new in zip(tensors_of(target), tensors_of(source), strict=True):
        own.copy_(new, non_blocking=True)
