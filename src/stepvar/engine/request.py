"""One generation as it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.methods.base import Method


@dataclass(frozen=True)
class Request:
    """The arguments of :func:`stepvar.generation.generate`, which are described there.

    On CUDA the condition is staged: its tensors are on the device.
    """

    model: Any
    condition: Any
    plan: Plan
    method: Method
    noise: Noise
    forced: Mapping[int, Tensor]
    recorder: Recorder
    on_scale_end: Callable[[Step, Any], None] | None = None
