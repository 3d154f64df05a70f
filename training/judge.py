"""Train the judge of scenes on images rendered on the fly.

    python -m training.judge --out DIR --minutes 3 --device cuda

Writes ``judge.safetensors`` and ``judge.json`` (accuracies on held-out scenes) to DIR, and a checkpoint
from which ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.evaluation.scenes.grammar import BACKGROUNDS, RELATIONS, Scene, held_out_scenes
from stepvar.evaluation.scenes.judge import RELATION_SLOTS, SLOTS, WORDS, Judge
from stepvar.evaluation.scenes.render import layouts, render
from stepvar.utils.device import to_device_async
from training.captions import sample_training_scene
from training.verdicts import ATTRIBUTES, judge_scenes

from .degrade import degrade

RATIOS: tuple[tuple[int, int], ...] = ((1, 1), (2, 3), (3, 2), (3, 4), (4, 3))
EVALUATION_SEED = 20_000_000
_CHECKPOINT = "judge.checkpoint.pt"


@dataclass(frozen=True)
class Batch:
    """Rendered images (B, 3, H, W) and what is in them.

    ``words`` (B, 4, 4) holds, for each slot, the codes of shape, colour, texture and size; ``spoken``
    (B, 4) is where a slot is defined; ``places`` (B, 4, 3) is its object's (x, y, radius) in pixels.
    """

    images: Tensor
    scenes: list[Scene]
    words: Tensor
    spoken: Tensor
    places: Tensor
    background: Tensor
    count: Tensor


def image_size(size: int, ratio: tuple[int, int]) -> tuple[int, int]:
    """Height and width with about ``size`` x ``size`` pixels, multiples of 8."""
    scale = math.sqrt(ratio[0] / ratio[1])
    return max(16, round(size * scale / 8) * 8), max(16, round(size / scale / 8) * 8)


def make_batch(scenes: list[Scene], seeds: Sequence[int], size: tuple[int, int], device: torch.device) -> Batch:
    """Render scenes, which have no unspoken attributes, and label them."""
    height, width = size
    order = torch.tensor([_slot_objects(scene) for scene in scenes])
    table = torch.tensor(
        [
            [[words.index(getattr(item, name)) for name, words in WORDS.items()] for item in _both(scene)]
            for scene in scenes
        ]
    )
    slot = order.clamp(min=0)
    rows = torch.arange(len(scenes))[:, None]
    places = layouts(scenes, seeds, height, width)
    labels = (
        table[rows, slot],
        order >= 0,
        places[rows, slot],
        torch.tensor([BACKGROUNDS.index(str(scene.background)) for scene in scenes]),
        torch.tensor([len(scene.objects) - 1 for scene in scenes]),
    )
    words, spoken, where, background, count = (to_device_async(value, device) for value in labels)
    images = render(scenes, seeds, height, width, device)
    return Batch(images, scenes, words, spoken, where, background, count)


def _both(scene: Scene) -> tuple[Any, Any]:
    return scene.objects[0], scene.objects[-1]


def _slot_objects(scene: Scene) -> list[int]:
    """Which object each slot shows; -1 where the scene does not define it."""
    if len(scene.objects) == 1:
        return [0] * len(SLOTS)
    if scene.relation not in RELATIONS:
        raise ValueError("two objects without a relation have no known places")
    slots = [-1] * len(SLOTS)
    for index, slot in enumerate(RELATION_SLOTS[scene.relation]):
        slots[slot] = index
    return slots


def loss_of(logits: dict[str, Tensor], batch: Batch) -> Tensor:
    """Cross entropies of all heads, and of the attention with the cells inside each slot's object."""
    total = F.cross_entropy(logits["background"], batch.background)
    total = total + F.cross_entropy(logits["count"], batch.count)
    share = batch.spoken.float() / batch.spoken.sum()
    for index, name in enumerate(WORDS):
        losses = F.cross_entropy(logits[name].transpose(1, 2), batch.words[..., index], reduction="none")
        total = total + (losses * share).sum()
    inside = cells_inside(batch.places, batch.images.shape[2:], logits["attention"].shape[2:])
    missed = -(inside * logits["attention"]).sum((2, 3))
    return total + 0.3 * (missed * share).sum()


def cells_inside(places: Tensor, size: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Weights (B, n, h, w) that sum to 1, on the cells of each object at ``places`` (B, n, 3) in a image's pixels."""
    device = places.device
    y = (torch.arange(cells[0], device=device) + 0.5) * (size[0] / cells[0])
    x = (torch.arange(cells[1], device=device) + 0.5) * (size[1] / cells[1])
    centre_x, centre_y, radius = places[..., None, None].unbind(2)
    squared = (x - centre_x) ** 2 + (y[:, None] - centre_y) ** 2
    return (-squared / (0.7 * radius) ** 2).flatten(2).softmax(-1).view(squared.shape)


class Average:
    """Exponential moving average of a judge's weights and batch statistics."""

    def __init__(self, judge: Judge, decay: float = 0.998) -> None:
        self.state = {name: value.detach().clone() for name, value in judge.state_dict().items()}
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, judge: Judge) -> None:
        """Move towards the present weights; faster at first, so that the random start is forgotten."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = judge.state_dict()
        moving = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in moving], [state[name] for name in moving], weight)

    def judge(self, device: torch.device) -> Judge:
        """A judge with the averaged weights, in evaluation mode."""
        averaged = Judge().to(device)
        averaged.load_state_dict(self.state)
        return averaged.eval()


@torch.no_grad()
def evaluate(judge: Judge, size: int, samples: int, device: torch.device, batch_size: int = 128) -> dict[str, float]:
    """Accuracies on undegraded renders of held-out scenes, over the scenes or objects that each concerns.

    Keys: those of ``judge_scene`` by scene, and the attributes of each object at its place
    (``object_shape`` ...), the texture also apart for large and small objects.
    """
    hits: dict[str, list[bool]] = {}
    scenes = held_out_scenes(samples, seed=EVALUATION_SEED)
    for start in range(0, samples, batch_size):
        chunk = scenes[start : start + batch_size]
        seeds = range(EVALUATION_SEED + start, EVALUATION_SEED + start + len(chunk))
        shape = image_size(size, RATIOS[(start // batch_size) % len(RATIOS)])
        batch = make_batch(chunk, seeds, shape, device)
        logits = judge(batch.images)
        for verdict in judge_scenes(logits, chunk):
            for name in ATTRIBUTES:
                if verdict[name] is not None:
                    hits.setdefault(name, []).append(bool(verdict[name]))
        _count_objects(hits, logits, batch)
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}


def _count_objects(hits: dict[str, list[bool]], logits: dict[str, Tensor], batch: Batch) -> None:
    spoken = batch.spoken.cpu()
    large = (batch.words[..., list(WORDS).index("size")].cpu() == WORDS["size"].index("large"))[spoken]
    for index, name in enumerate(WORDS):
        right = (logits[name].argmax(-1) == batch.words[..., index]).cpu()[spoken]
        hits.setdefault(f"object_{name}", []).extend(right.tolist())
        if name == "texture":
            hits.setdefault("object_texture_large", []).extend(right[large].tolist())
            hits.setdefault("object_texture_small", []).extend(right[~large].tolist())


def learning_rate(progress: float, peak: float) -> float:
    """A short linear rise, then half a cosine; ``progress`` is the elapsed part of the time, 0 to 1."""
    warm = 0.04
    if progress < warm:
        return peak * (0.02 + 0.98 * progress / warm)
    return peak * (0.005 + 0.995 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warm) / (1.0 - warm)))))


class Trainer:
    """The state of a training run and its steps."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.judge = Judge().to(self.device)
        self.optimizer = torch.optim.AdamW(self.judge.parameters(), lr=options.lr, weight_decay=0.02)
        self.average = Average(self.judge)
        self.rng = random.Random(options.seed)
        self.step, self.elapsed = 0, 0.0

    def train_step(self) -> Tensor:
        """One batch; returns the loss, on the device."""
        options = self.options
        scenes = [sample_training_scene(self.rng) for _ in range(options.batch)]
        first = self.step * options.batch
        size = image_size(options.size, self.rng.choice(RATIOS))
        batch = make_batch(scenes, range(first, first + options.batch), size, self.device)
        images = degrade(batch.images).contiguous(memory_format=torch.channels_last)
        with self._precision():
            logits = self.judge(images)
        loss = loss_of(logits, batch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.elapsed / (60.0 * options.minutes), options.lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.judge.parameters(), 5.0)
        self.optimizer.step()
        self.average.update(self.judge)
        self.step += 1
        return loss.detach()

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def run(self) -> None:
        """Train until the time is up."""
        self.judge.train()
        before, started = self.elapsed, time.monotonic()
        reported = saved = started
        while self.elapsed < 60.0 * self.options.minutes:
            loss = self.train_step()
            now = time.monotonic()
            self.elapsed = before + now - started
            if now - reported > self.options.report_seconds:
                # Reading the loss waits for the device, so it is read seldom.
                print(f"step {self.step}  {self.elapsed:.0f} s  loss {float(loss):.3f}", flush=True)
                reported = now
            if now - saved > 60.0:
                self.save()
                saved = now
        self.save()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        path = self.options.out / _CHECKPOINT
        state = {
            "judge": self.judge.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state,
            "updates": self.average.updates,
            "step": self.step,
            "elapsed": self.elapsed,
            "random": self.rng.getstate(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def resume(self) -> None:
        """Go on from the checkpoint, when there is one."""
        path = self.options.out / _CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.judge.load_state_dict(state["judge"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state, self.average.updates = state["average"], state["updates"]
        self.step, self.elapsed = state["step"], state["elapsed"]
        version, numbers, gauss = state["random"]
        self.rng.setstate((version, tuple(numbers), gauss))
        print(f"resumed at step {self.step}, {self.elapsed:.0f} s", flush=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=3.0, help="training time in all, resumed parts included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=256, help="side of a square image with as many pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=2048, help="held-out scenes of the evaluation")
    parser.add_argument("--report-seconds", type=float, default=5.0)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    if options.resume:
        trainer.resume()
    trainer.run()
    trainer.average.judge(trainer.device).save(options.out / "judge.safetensors")
    # The weights are judged as they are stored.
    judge = Judge.load(options.out / "judge.safetensors", trainer.device)
    accuracy = evaluate(judge, options.size, options.samples, trainer.device)
    report = {
        "accuracy": accuracy,
        "samples": options.samples,
        "size": options.size,
        "steps": trainer.step,
        "batch": options.batch,
        "training_seconds": round(trainer.elapsed, 1),
        "device": _device_name(trainer.device),
        "torch": torch.__version__,
        "parameters": sum(value.numel() for value in judge.parameters()),
        "command": ["python", "-m", "training.judge", *(sys.argv[1:] if arguments is None else arguments)],
    }
    write_json(options.out / "judge.json", report)
    print(json.dumps(accuracy, indent=2))
    return 0


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    raise SystemExit(main())
