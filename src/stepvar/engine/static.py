"""Values whose tensors keep their place in memory, so that a captured graph finds new numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor in it changed: in dataclasses, tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(one, change) for one in value)
    if isinstance(value, Mapping):
        return {key: map_tensors(one, change) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: map_tensors(getattr(value, field.name), change) for field in fields(value) if field.init}
        return replace(value, **own)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a value, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found


def signature(value: Any) -> Hashable:
    """What two values must have in common for one to be copied into the other: all but the numbers in tensors."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.dtype, str(value.device))
    if isinstance(value, (tuple, list)):
        return tuple(signature(one) for one in value)
    if isinstance(value, Mapping):
        return tuple((key, signature(one)) for key, one in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        own = ((field.name, signature(getattr(value, field.name))) for field in fields(value) if field.init)
        return (type(value).__qualname__, tuple(own))
    return repr(value)


def static_copy(value: Value) -> Value:
    """A copy whose tensors are contiguous and shared with nobody."""
    copied: Value = map_tensors(value, lambda tensor: tensor.detach().clone(memory_format=_contiguous()))
    return copied


def copy_into(target: Any, source: Any) -> None:
    """Writes the numbers of one value into the tensors of another of the same signature."""
    for own, new in zip(tensors_of(target), tensors_of(source), strict=True):
        own.copy_(new, non_blocking=True)


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format
