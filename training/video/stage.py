"""What the trainings of the video model share: optimiser, average, clock, checkpoints, and an end before a deadline."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.loop import (
    Progress,
    averaged,
    learning_rate,
    load_checkpoint,
    mean_module,
    parameter_groups,
    save_checkpoint,
)
from training.video.presets import PRESETS, VideoPreset


@dataclass(frozen=True)
class Options:
    """The arguments of a stage.

    Attributes:
        out: folder of checkpoints and results.
        minutes: of the whole training, over all starts.
        limit: seconds after which this start ends, finished or not.
        init: model folder to go on from, for the transformer.
    """

    preset: VideoPreset
    out: Path
    minutes: float
    device: torch.device
    limit: float = float("inf")
    seed: int = 0
    init: Path | None = None

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
        given = parser.parse_args()
        given.out.mkdir(parents=True, exist_ok=True)
        device = torch.device(given.device)
        return cls(PRESETS[given.preset], given.out, given.minutes, device, given.limit, given.seed, given.init)


class Stage:
    """A module in training; all that changes is in its checkpoint, from which it goes on."""

    def __init__(self, name: str, module: nn.Module, options: Options, peak: float, decay: float) -> None:
        self.module, self.peak = module, peak
        self.mean = averaged(module, 0.999)
        fused = options.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(parameter_groups([module], decay), lr=peak, betas=(0.9, 0.95), fused=fused)
        self.progress = Progress(options.minutes)
        self.path = options.out / f"{name}.ckpt"
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
        """Whether to take another step; saves now and then, and at the end."""
        more = not self.finished and time.monotonic() < self.deadline
        if self.progress.due(120) or not more:
            self.save()
        return more

    def minimise(self, loss: Tensor, seen: int) -> None:
        """One step of the optimiser and of the average, for a batch of ``seen`` clips."""
        rate = learning_rate(self.progress.fraction, self.peak)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.module)
        self.progress.step += 1
        self.progress.seen += seen

    def averaged(self) -> nn.Module:
        """The averaged module, in evaluation mode."""
        return mean_module(self.mean, type(self.module)).eval()

    def save(self) -> None:
        parts: dict[str, Any] = {"module": self.module, "mean": self.mean, "optimiser": self.optimiser}
        state = {name: part.state_dict() for name, part in parts.items()}
        save_checkpoint(self.path, state | {"progress": self.progress.state()})

    def facts(self, options: Options) -> dict[str, object]:
        """What a card says of the training."""
        progress, device = self.progress, options.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "clips": progress.seen,
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 2),
            "device": name,
            "torch": torch.__version__,
        }
