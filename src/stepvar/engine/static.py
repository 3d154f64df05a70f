"""Values whose tensors keep their place in memory, so that a captured graph finds new numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


class _TensorsAreShared(TorchFunctionMode):
    """Within it a deep copy has the tensors of the original."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


def forked(value: Value, shared: Iterable[object]) -> Value:
    """A copy that can go on by itself: its containers and numbers on the host are its own, its tensors are not.

    Args:
        shared: what is not copied, either.

    Raises:
        RuntimeError: if something in it cannot be copied.
    """
    try:
        with _TensorsAreShared():
            return deepcopy(value, {id(one): one for one in shared})
    except TypeError as error:
        raise RuntimeError(f"a state cannot be copied: {error}") from error
