"""Models without their weights: shapes on PyTorch's ``meta`` device, which hold no memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class NoInitialisation(TorchFunctionMode):
    """Leaves weights as they are allocated.

    On the meta device there is nothing to fill in, and the first normal distribution there imports PyTorch's compiler,
    which takes a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_on_meta(build: Callable[[Any], Any], config: Any) -> Any:
    """What ``build`` makes of a configuration, on the meta device."""
    with torch.device("meta"), NoInitialisation():
        return build(config)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Keeps PyTorch from importing its compiler, which takes a second, for operations on the meta device.

    PyTorch works out many shapes in functions that it hides from the compiler, and imports the compiler to hide them
    from. Within the block a stand-in hides nothing; after it all is as before. For commands that do nothing else:
    other threads would find the stand-in, too.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    seen: list[Callable[..., Any]] = []

    def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        seen.append(function)
        return function

    sys.modules[name] = stand_in = ModuleType(name)
    stand_in.disable = disable  # type: ignore[attr-defined]
    try:
        yield
    finally:
        sys.modules.pop(name, None)
        for function in seen:
            vars(function).pop("__dynamo_disable", None)
