"""Models without their weights: shapes on PyTorch's ``meta`` device, which hold no memory."""

from __future__ import annotations

from collections.abc import Callable
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
