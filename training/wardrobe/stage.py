"""What the two trainings share: arguments, photographs, optimiser, average, clock and checkpoints.

Under ``torchrun`` every process draws batches of its own and gradients are averaged: see :mod:`training.parallel`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.loop import Progress, averaged, device_name, load_checkpoint, parameter_groups, save_checkpoint
from training.parallel import Group
from training.wardrobe.presets import WardrobePreset

WARM_UP = 150
"""Steps over which the learning rate rises; the fall goes by elapsed time."""
SAVE_EVERY = 100.0
PULL = 0.3
CHECK_EVERY = 60.0


@dataclass(frozen=True)
class Options:
    """The arguments of a stage.

    Attributes:
        photographs: folder of the captioned photographs, with their table.
        more: folders of photographs without captions, for the tokenizer alone.
        out: folder of checkpoints and results.
        minutes: of the whole training, over all starts.
        init: folder of an earlier run, whose weights this one goes on from.
        lite0: file of EfficientNet-Lite0's early layers; None: from the package.
        compiled: whether the networks are compiled.
        most: read no more photographs of each folder than this; None: all.
        peak: highest learning rate; None: the stage's own, which is for a fresh start.
        pull: most of the discriminator's pull on decoded pictures, as a share of that of the errors; 0: it is left out.
        squares: weight of the mean squared error of decoded pictures; None: the stage's own.
        wait_for: file whose coming says that the photographs are there; None: they are.
    """

    preset: WardrobePreset
    photographs: Path
    out: Path
    minutes: float
    device: torch.device
    more: tuple[Path, ...] = ()
    init: Path | None = None
    lite0: Path | None = None
    compiled: bool = False
    most: int | None = None
    peak: float | None = None
    pull: float = PULL
    squares: float | None = None
    wait_for: Path | None = None
    seed: int = 0
    group: Group = field(default_factory=Group)

    def seeds(self, step: int) -> random.Random:
        """Seeds this process's own draws, and returns the shared ones: of the shapes of steps, the same everywhere."""
        seed = self.seed + step
        torch.manual_seed(1_000_003 * (self.group.rank + 1) + seed)
        return random.Random(seed)


def learning_rate(fraction: float, step: int, peak: float) -> float:
    """A rise over the first steps, and half a cosine over the elapsed ``fraction`` of the time, to 2 % of the peak."""
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return peak * fall * min(1.0, (step + 1) / WARM_UP)


class Stage:
    """A module in training, its optimiser and its average.

    Attributes:
        fraction: elapsed part of the time, the same in all processes.
    """

    def __init__(self, name: str, module: nn.Module, options: Options, peak: float, decay: float) -> None:
        self.name, self.module, self.options, self.peak = name, module, options, peak
        self.group = options.group
        self.group.same_start(module)
        self.mean = averaged(module, 0.999)
        fused = options.device.type == "cuda"
        groups = parameter_groups([module], decay)
        self.optimiser = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=fused)
        self.progress = Progress(options.minutes)
        self.fraction = 0.0
        self.path = options.out / f"{name}.ckpt"
        self._checked = 0.0

    def restore(self) -> dict[str, Any] | None:
        """Goes on from the checkpoint, if there is one, and returns what :meth:`save` was given beside."""
        state = load_checkpoint(self.path, self.options.device)
        if state is None:
            return None
        self.module.load_state_dict(state["module"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress.restore(state["progress"])
        return state

    def save(self, more: dict[str, Any]) -> None:
        parts: dict[str, Any] = {"module": self.module, "mean": self.mean, "optimiser": self.optimiser}
        state = {name: part.state_dict() for name, part in parts.items()}
        save_checkpoint(self.path, state | {"progress": self.progress.state()} | more)

    def start(self) -> None:
        """Starts the clock: reading and compiling before the first step are not counted."""
        self.progress.restore(self.progress.state() | {"elapsed": self.progress.elapsed})

    def running(self) -> bool:
        """Whether to take another step; the first process decides for all."""
        self.fraction = self.group.from_leader(self.progress.fraction)
        return self.fraction < 1

    def check_due(self) -> bool:
        """Whether the held-out photographs are to be looked at; the first process alone does it."""
        if not self.group.leads or self.progress.seconds - self._checked < CHECK_EVERY:
            return False
        self._checked = self.progress.seconds
        return True

    def minimise(self, seen: int) -> None:
        """A step along the gradients that lie in the module, for a batch of ``seen`` pictures in each process."""
        rate = learning_rate(self.fraction, self.progress.step, self.peak)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.group.average_gradients(self.module.parameters())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.mean.update_parameters(self.module)
        self.progress.step += 1
        self.progress.seen += seen * self.group.size

    def facts(self) -> dict[str, object]:
        """What a card says of the training."""
        progress = self.progress
        return {
            "pictures": progress.seen,
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 2),
            "device": f"{self.group.size} x {device_name(self.options.device)}",
            "torch": str(torch.__version__),
        }


def choose(shares: Sequence[tuple[float, float]], rng: random.Random) -> float:
    """One of the ratios, by their shares."""
    return rng.choices([ratio for ratio, _ in shares], [share for _, share in shares])[0]
