"""What the trainings of the video model share: optimiser, average, clock, checkpoints, and an end before a deadline.

Started by ``torchrun``, a stage runs on several GPUs of one host: see :mod:`training.parallel`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.loop import (
    Progress,
    averaged,
    device_name,
    learning_rate,
    load_checkpoint,
    mean_module,
    parameter_groups,
    save_checkpoint,
)
from training.parallel import Group
from training.video.presets import PRESETS, VideoPreset


@dataclass(frozen=True)
class Options:
    """The arguments of a stage.

    Attributes:
        out: folder of checkpoints and results.
        minutes: of the whole training, over all starts.
        limit: seconds after which this start ends, finished or not.
        init: model folder that the transformer's training goes on from, with its text encoder and tokenizer.
        peak: highest learning rate; None: the stage's own, which is for a fresh start.
        keep_every: minutes between the models that the transformer's training leaves behind, in ``model-MINUTES``.
        group: the processes that train together.
    """

    preset: VideoPreset
    out: Path
    minutes: float
    device: torch.device
    limit: float = float("inf")
    seed: int = 0
    init: Path | None = None
    peak: float | None = None
    keep_every: float = float("inf")
    group: Group = field(default_factory=Group)

    @classmethod
    def parse(cls, description: str | None, minutes: float) -> Options:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--minutes", type=float, default=minutes)
        parser.add_argument("--limit", type=float, default=float("inf"), help="seconds until this start ends")
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--preset", choices=PRESETS, default="scenes-video")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument(
            "--init", type=Path, help="model folder whose transformer, text encoder and tokenizer go on"
        )
        parser.add_argument("--peak", type=float, help="highest learning rate; lower than the default behind --init")
        parser.add_argument(
            "--keep-every", type=float, default=float("inf"), help="minutes between models left beside the last one"
        )
        parsed = parser.parse_args()
        if not parsed.keep_every > 0:
            parser.error(f"--keep-every {parsed.keep_every:g}: must be above 0; leave it out for the last model alone")
        parsed.out.mkdir(parents=True, exist_ok=True)
        group = Group.join()
        device = group.device(torch.device(parsed.device))
        preset = PRESETS[parsed.preset]
        return cls(
            preset,
            parsed.out,
            parsed.minutes,
            device,
            parsed.limit,
            parsed.seed,
            parsed.init,
            parsed.peak,
            parsed.keep_every,
            group,
        )

    def data_seed(self, step: int) -> int:
        """Of the data of this process when it starts at ``step``: another stream for each process and each start."""
        return 1_000_003 * (self.group.rank + 1) + self.seed + step


class Stage:
    """A module in training; all that changes is in its checkpoint, from which it goes on."""

    def __init__(self, name: str, module: nn.Module, options: Options, peak: float, decay: float) -> None:
        self.module, self.peak, self.group = module, options.peak or peak, options.group
        self.group.same_start(module)
        self.mean = averaged(module, 0.999)
        fused = options.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            parameter_groups([module], decay), lr=self.peak, betas=(0.9, 0.95), fused=fused
        )
        self.progress = Progress(options.minutes)
        self.fraction = 0.0
        self.started = False
        self.path = options.out / f"{name}.ckpt"
        self.marker = options.out / f"{name}.done"
        self.deadline = time.monotonic() + options.limit
        if state := load_checkpoint(self.path, options.device):
            module.load_state_dict(state["module"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.progress.restore(state["progress"])

    @property
    def finished(self) -> bool:
        return self.progress.fraction >= 1

    @property
    def running(self) -> bool:
        """Whether to take another step; saves now and then, and at the end.

        The first process decides for all, so that they stop at the same step and their rates are the same.
        """
        ended = self.finished or time.monotonic() >= self.deadline
        self.fraction = self.group.from_leader(-1.0 if ended else self.progress.fraction)
        more = self.fraction >= 0
        if self.group.leads and (self.progress.due(120) or not more):
            self.save()
        return more

    def minimise(self, loss: Tensor, seen: int) -> None:
        """One step of the optimiser and of the average, for a batch of ``seen`` clips in each process."""
        rate = learning_rate(self.fraction, self.peak)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average_gradients(self.module.parameters())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.module)
        self.progress.step += 1
        self.progress.seen += seen * self.group.size
        if not self.started:
            # The first step of a start compiles, and would take the warm-up's time.
            self.progress.restore(self.progress.state() | {"elapsed": self.progress.elapsed})
            self.started = True

    def say(self, read: Callable[[], dict[str, float]]) -> None:
        """A line of progress now and then, from the first process."""
        if self.group.leads:
            self.progress.say(read)

    def averaged(self) -> nn.Module:
        """The averaged module, in evaluation mode."""
        return mean_module(self.mean, type(self.module)).eval()

    def close(self) -> bool:
        """Ends this start, when all is written: leaves a marker if the training is finished, and says so."""
        if self.finished and self.group.leads:
            self.marker.touch()
        self.group.leave()
        return self.finished

    def save(self) -> None:
        parts: dict[str, Any] = {"module": self.module, "mean": self.mean, "optimiser": self.optimiser}
        state = {name: part.state_dict() for name, part in parts.items()}
        save_checkpoint(self.path, state | {"progress": self.progress.state()})

    def info(self, options: Options) -> dict[str, object]:
        """What a card says of the training."""
        progress, processes = self.progress, f"{self.group.size} x " if self.group.size > 1 else ""
        return {
            "clips": progress.seen,
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 2),
            "device": processes + device_name(options.device),
            "torch": torch.__version__,
        }
