"""What every training shares: time-based schedule, averaged weights, resumable checkpoints, progress lines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stepvar.utils.files import atomic_path

Module = TypeVar("Module", bound=nn.Module)


def learning_rate(progress: float, peak: float, warmup: float = 0.03) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak; ``progress`` in [0, 1] is elapsed time.

    Time and not steps, so that a machine that others share does not spoil the decay.
    """
    if progress < warmup:
        return peak * max(progress, 1e-4) / warmup
    falling = (min(progress, 1.0) - warmup) / (1 - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling)))


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights; it starts fast, so that the random start is forgotten."""

    @torch.no_grad()
    def update(
        averages: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], count: Tensor | int
    ) -> None:
        steps = float(count)
        torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return AveragedModel(module, multi_avg_fn=update)


def mean_module(average: AveragedModel, kind: type[Module]) -> Module:
    """The averaged module itself."""
    module = average.module
    if not isinstance(module, kind):
        raise TypeError(f"{type(module).__name__} is averaged, not {kind.__name__}")
    return module


def parameter_groups(modules: list[nn.Module], decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    parameters = [p for module in modules for p in module.parameters()]
    matrices = [p for p in parameters if p.squeeze().ndim >= 2]
    others = [p for p in parameters if p.squeeze().ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


@dataclass
class Progress:
    """The clock of a training; its elapsed time survives a restart.

    Attributes:
        minutes: the whole budget.
        elapsed: seconds spent before this start.
    """

    minutes: float
    elapsed: float = 0.0
    step: int = 0
    seen: int = 0
    every: float = 10.0
    _start: float = field(default_factory=time.monotonic)
    _spoken: float = 0.0
    _saved: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.elapsed + time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        return min(1.0, self.seconds / (60 * self.minutes))

    def say(self, read: Callable[[], dict[str, float]]) -> None:
        """Prints a line every few seconds; only then are the values read, since that waits for the device."""
        if time.monotonic() - self._spoken < self.every:
            return
        self._spoken = time.monotonic()
        shown = " ".join(f"{name}={value:.4g}" for name, value in read().items())
        left = 60 * self.minutes - self.seconds
        print(
            f"[{100 * self.fraction:5.1f} %] step {self.step} seen {self.seen} {shown} left {left:.0f} s",
            flush=True,
        )

    def due(self, seconds: float) -> bool:
        """Whether ``seconds`` have passed since the last checkpoint."""
        if time.monotonic() - self._saved < seconds:
            return False
        self._saved = time.monotonic()
        return True

    def state(self) -> dict[str, Any]:
        return {"elapsed": self.seconds, "step": self.step, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.elapsed, self.step, self.seen = state["elapsed"], state["step"], state["seen"]
        self._start = time.monotonic()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state saved last, or None."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def command_line(stage: str) -> str:
    """The command that runs a stage again as it was run."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    return " ".join([start, "-m", f"training.{stage}", *sys.argv[1:]])


def write_card(path: Path, values: dict[str, Any]) -> None:
    """Writes the info of a training for the model card."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def earlier_runs(folder: Path | None) -> list[dict[str, Any]]:
    """The training runs that a model folder comes from, as its card lists them."""
    path = None if folder is None else folder / "training.json"
    if path is None or not path.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return runs


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
