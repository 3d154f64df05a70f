"""Values made of dataclasses, lists, tuples and mappings, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor in it changed: in dataclasses, tuples, named ones too, lists and mappings."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        changed = [map_tensors(one, change) for one in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
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


def shape_and_place(value: Any) -> Hashable:
    """Of a tensor all but its numbers; of anything else what it prints as."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.dtype, str(value.device))
    return repr(value)


def signature(value: Any, leaf: Callable[[Any], Hashable] = shape_and_place) -> Hashable:
    """What two values must have in common to stand for each other; ``leaf`` says it of a tensor or a host value."""
    if isinstance(value, (tuple, list)):
        return tuple(signature(one, leaf) for one in value)
    if isinstance(value, Mapping):
        return tuple((key, signature(one, leaf)) for key, one in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        own = ((field.name, signature(getattr(value, field.name), leaf)) for field in fields(value) if field.init)
        return (type(value), tuple(own))
    return leaf(value)
