"""Trains the judge of clips: ``python -m training.video.judge --out runs/video --minutes 1.7 --device cuda``.

On clips rendered on the fly and damaged, each frame differently. Writes ``judge.safetensors`` and ``judge.json``
(accuracies on held-out clips).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.evaluation.scenes.clips.grammar import Clip, held_out_clips
from stepvar.evaluation.scenes.clips.judge import ATTRIBUTES, FRAMES, HEADS, ClipJudge, judge_clips, words_of
from stepvar.evaluation.scenes.clips.render import clip_paths, render_clips
from stepvar.utils.device import to_device_async
from training.degrade import degrade
from training.judge import cells_inside
from training.loop import command_line, write_card
from training.video.data import ClipSource
from training.video.stage import Options, Stage

PEAK_LR = 3e-3
UNSPOKEN = -100
EVALUATED = 1024
EVALUATION_SEED = 20_000_000


def labels_of(clips: Sequence[Clip]) -> Tensor:
    """Class numbers (B, attributes) in the order of ``HEADS``; ``UNSPOKEN`` where nothing can be seen."""
    tables = [words_of(clip) for clip in clips]
    return torch.tensor([[UNSPOKEN if (word := table[name]) is None else word for name in HEADS] for table in tables])


def loss_of(logits: dict[str, Tensor], labels: Tensor, places: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cross entropies of all heads, and of the attention with the cells inside the object; and those of each head.

    Args:
        places: (B, 9, 3), (x, y, radius) of the object in each frame that the judge sees, in pixels.
    """
    said = (labels != UNSPOKEN).sum(0).clamp(min=1)
    sums = [
        F.cross_entropy(logits[n], labels[:, i], ignore_index=UNSPOKEN, reduction="sum") for i, n in enumerate(HEADS)
    ]
    losses = torch.stack(sums) / said
    inside = cells_inside(places, size, logits["attention"].shape[2:])
    missed = -(inside * logits["attention"]).sum((2, 3)).mean()
    return losses.sum() + 0.3 * missed, losses


def damaged(videos: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) with every frame damaged by itself, and some clips blurred in time."""
    batch, _, frames = videos.shape[:3]
    images = degrade(videos.transpose(1, 2).flatten(0, 1))
    videos = images.unflatten(0, (batch, frames)).transpose(1, 2)
    before = torch.cat((videos[:, :, :1], videos[:, :, :-1]), dim=2)
    share = torch.rand(batch, 1, 1, 1, 1, device=videos.device) * 0.4
    shown = torch.rand(batch, 1, 1, 1, 1, device=videos.device) < 0.3
    return torch.lerp(videos, before, share * shown)


@torch.inference_mode()
def evaluate(judge: ClipJudge, size: tuple[int, int, int], device: torch.device, count: int) -> dict[str, float]:
    """Shares of undamaged held-out clips whose attributes are read right, of those that speak of them."""
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    clips = held_out_clips(count, seed=EVALUATION_SEED)
    for start in range(0, count, 64):
        part = clips[start : start + 64]
        seeds = range(EVALUATION_SEED + start, EVALUATION_SEED + start + len(part))
        verdicts = judge_clips(judge(render_clips(part, seeds, *size, device=device)), part)
        for name in ATTRIBUTES:
            hits[name] += [bool(verdict[name]) for verdict in verdicts if verdict[name] is not None]
    return {name: sum(values) / max(1, len(values)) for name, values in hits.items()}


def _values(losses: Tensor) -> dict[str, float]:
    return dict(zip(HEADS, losses.tolist(), strict=True))


def train(options: Options) -> bool:
    """Trains, or goes on; writes the judge and its card. Says whether it is finished."""
    torch.manual_seed(options.seed)
    device, (_, height, width) = options.device, options.preset.clip_size
    module = ClipJudge().to(device)
    stage = Stage("judge", module, options, PEAK_LR, decay=0.02)
    # The frames that the judge would take of a longer clip are those of a clip of as many.
    source = ClipSource(options.data_seed(stage.progress.step), device, (FRAMES, height, width))
    module.train()
    while stage.running:
        clips, seeds, videos = source.sample(options.preset.judge_batch)
        labels, places = labels_of(clips), clip_paths(clips, seeds, FRAMES, height, width)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = module(damaged(videos))
        loss, losses = loss_of(
            logits, to_device_async(labels, device), to_device_async(places, device), (height, width)
        )
        stage.minimise(loss, len(clips))
        stage.say(partial(_values, losses))
    averaged = stage.averaged()
    assert isinstance(averaged, ClipJudge)
    averaged.save(options.out / "judge.safetensors")
    judge = ClipJudge.load(options.out / "judge.safetensors", device)
    accuracy = evaluate(judge, options.preset.clip_size, device, EVALUATED if stage.finished else 128)
    info = {"accuracy_held_out": accuracy, "parameters": sum(p.numel() for p in judge.parameters())}
    write_card(options.out / "judge.json", info | stage.info(options) | {"command": command_line("video.judge")})
    print("judge:", "  ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items()), flush=True)
    return stage.close()


if __name__ == "__main__":
    train(Options.parse(__doc__, 1.7))
