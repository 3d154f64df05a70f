"""Trains the bit tokenizer: ``python -m training.tokenizer --out runs/scenes --minutes 6 --device cuda``."""

from __future__ import annotations

import argparse
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.checkpoints import fill_module, read_state, save_weights
from stepvar.core.tokens import ScaleSchedule
from stepvar.evaluation.scenes.grammar import held_out_scenes
from stepvar.evaluation.scenes.render import render
from stepvar.models.infinity import schedule_for
from stepvar.models.infinity.tokenizer import BitTokenizer
from training.data import SceneSource
from training.draws import flip_chances
from training.loop import (
    Progress,
    averaged,
    command_line,
    learning_rate,
    load_checkpoint,
    mean_module,
    parameter_groups,
    save_checkpoint,
    write_card,
)
from training.presets import PRESETS, Preset
from training.pyramid import pyramid

PEAK_LR = 1e-3
COMMITMENT = 0.25
DROPPED_SCALES = 0.1
FLIPPED, MOST_FLIPS = 0.3, 0.1


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the images' horizontal and vertical differences: keeps edges sharp."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def in_bfloat16(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module in bfloat16 with gradients to its float32 weights.

    Unlike autocast it leaves the normalisations and activations in bfloat16 too (they sum in float32 inside), which
    halves the memory traffic that a shallow convolutional network spends its time on.
    """
    weights = {name: weight.to(torch.bfloat16) for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, (x.to(torch.bfloat16),)).float()


def training_loss(
    tokenizer: BitTokenizer, images: Tensor, schedule: ScaleSchedule, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Reconstruction through the quantiser (straight-through gradient) and commitment to the codes."""
    latent = in_bfloat16(tokenizer.encoder, images)
    count = len(latent)
    flips = flip_chances(count, FLIPPED, MOST_FLIPS, latent.device)
    scales = rng.randrange(5, len(schedule)) if rng.random() < DROPPED_SCALES else len(schedule)
    quantised = pyramid(tokenizer, latent, schedule, scales, flips).sums[-1]
    decoded = in_bfloat16(tokenizer.decoder, latent + (quantised - latent).detach())
    error = F.mse_loss(decoded, images)
    loss = F.l1_loss(decoded, images) + 2 * error + 0.5 * gradient_loss(decoded, images)
    return loss + COMMITMENT * F.mse_loss(latent, quantised), error


@torch.no_grad()
def evaluate(tokenizer: BitTokenizer, preset: Preset, device: torch.device, count: int = 256) -> float:
    """Mean PSNR in dB (peak to peak 2) of held-out renders through the tokenizer."""
    schedule = schedule_for(preset.model.resolution, 1.0)
    last, stride = schedule.grids[-1], preset.model.tokenizer.stride
    scenes, values = held_out_scenes(count, seed=1), []
    for start in range(0, count, 32):
        part = scenes[start : start + 32]
        seeds = list(range(start, start + len(part)))
        images = render(part, seeds, last.h * stride, last.w * stride, device=device)
        decoded = tokenizer.decode(tokenizer.encode(images, schedule)[1])
        values.append(10 * torch.log10(4 / (decoded - images).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())


def _values(loss: Tensor, error: Tensor) -> dict[str, float]:
    return {"loss": loss.item(), "psnr": 10 * math.log10(4 / error.item())}


def train(
    preset: Preset, out: Path, minutes: float, device: torch.device, seed: int = 0, init: Path | None = None
) -> BitTokenizer:
    """Trains, or goes on from the checkpoint in ``out``; writes ``tokenizer.safetensors`` at the end.

    With ``init``, a finished tokenizer, only its decoder is trained on: the codes stay what they are, so a transformer
    that was trained on them stays valid.
    """
    torch.manual_seed(seed)
    tokenizer = BitTokenizer(preset.model.tokenizer)
    if init is not None:
        fill_module(tokenizer, read_state(init), str(init))
        tokenizer.encoder.requires_grad_(False)
    tokenizer.to(device)
    mean = averaged(tokenizer, 0.999)
    optimiser = torch.optim.AdamW(
        parameter_groups([tokenizer], 0.01), lr=PEAK_LR, betas=(0.9, 0.95), fused=device.type == "cuda"
    )
    progress, path = Progress(minutes), out / "tokenizer.ckpt"
    parts: dict[str, Any] = {"model": tokenizer, "mean": mean, "optimiser": optimiser}
    if state := load_checkpoint(path, device):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        progress.restore(state["progress"])
    source = SceneSource(seed + progress.step, device, preset.model.tokenizer.stride)
    waiting: list[Tensor] = []
    while progress.fraction < 1:
        if not waiting:
            schedule = schedule_for(preset.model.resolution, source.ratio())
            waiting = list(source.sample(preset.rendered, schedule)[1].split(preset.tokenizer_batch))
        images = waiting.pop()
        loss, error = training_loss(tokenizer, images, schedule, source.rng)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(progress.fraction, PEAK_LR)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimiser.step()
        mean.update_parameters(tokenizer)
        progress.step += 1
        progress.seen += len(images)
        progress.say(partial(_values, loss, error))
        if progress.due(120) or progress.fraction >= 1:
            state = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(path, state | {"progress": progress.state()})
    finished = mean_module(mean, BitTokenizer)
    save_weights(out / "tokenizer.safetensors", finished.state_dict(), torch.float16)
    psnr = evaluate(finished, preset, device)
    card = {"psnr_held_out_db": psnr, "images": progress.seen, "steps": progress.step}
    write_card(out / "tokenizer.json", card | {"minutes": progress.seconds / 60, "command": command_line("tokenizer")})
    print(f"tokenizer: {psnr:.2f} dB on held-out renders", flush=True)
    return finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=PRESETS, default="scenes")
    parser.add_argument("--init", type=Path, help="tokenizer.safetensors whose decoder alone is to be trained on")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    train(PRESETS[arguments.preset], arguments.out, arguments.minutes, device, init=arguments.init)


if __name__ == "__main__":
    main()
