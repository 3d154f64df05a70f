"""Trains the video tokenizer: ``python -m training.video.tokenizer --out runs/video --minutes 2.5 --device cuda``."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.checkpoints import fill_module, read_state, save_weights
from stepvar.evaluation.scenes.clips.grammar import held_out_clips
from stepvar.evaluation.scenes.clips.render import render_clips
from stepvar.models.infinity_star.codes import quantise
from stepvar.models.infinity_star.tokenizer import VideoTokenizer
from training.draws import flip_chances
from training.loop import command_line, write_card
from training.video.convolution import fold_convolutions, folding_is_faster
from training.video.data import ClipSource
from training.video.presets import VideoPreset
from training.video.pyramid import pyramids
from training.video.stage import Options, Stage

PEAK_LR = 1.5e-3
COMMITMENT = 0.25
FLIPPED = 0.3
MOST_FLIPS = 0.1


class Autoencoder(nn.Module):
    """Clips through the tokenizer and back, with gradients past the quantiser."""

    def __init__(self, preset: VideoPreset) -> None:
        super().__init__()
        self.tokenizer = VideoTokenizer(preset.model.tokenizer)
        self.passes = preset.passes
        initialise(self.tokenizer)

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, F, H, W) -> the decoded videos, the features, and their quantised form."""
        features = encode(self.tokenizer, videos)
        with torch.no_grad():
            count, device = len(videos), videos.device
            flips = flip_chances(count, FLIPPED, MOST_FLIPS, device)
            quantised = pyramids(features, self.passes, flips).total
        decoded = self.tokenizer.decode(features + (quantised - features).detach(), chunk=None)
        return decoded, features, quantised


def encode(tokenizer: VideoTokenizer, videos: Tensor) -> Tensor:
    """Features (B, d, T, h, w): the means of what the encoder says, all frames at once."""
    return tokenizer.encode(videos, mean=True, chunk=None)


def initialise(tokenizer: VideoTokenizer) -> None:
    """Makes what the encoder samples certain: means are trained, and the variances are as good as zero from the start.

    A residual block starts as the identity.
    """
    latent = tokenizer.config.latent_channels
    out = tokenizer.encoder.conv_out.conv
    with torch.no_grad():
        out.weight[latent:].zero_()
        assert out.bias is not None
        out.bias[latent:] = -20.0
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("conv2.conv.weight"):
                parameter.mul_(0.1)
            elif ".conv_y.conv.bias" in name:
                parameter.fill_(1.0)
            elif name.endswith((".conv_y.conv.weight", ".conv_b.conv.weight")):
                parameter.mul_(0.1)


def channels_last(module: nn.Module) -> None:
    """Puts the kernels of 3D convolutions in the layout that GPUs are fast in; the videos follow it."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def differences(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours, in width, height and time: edges and stillness."""
    return torch.stack([F.l1_loss(a.diff(dim=dim), b.diff(dim=dim)) for dim in (-1, -2, -3)]).sum()


def in_bfloat16(module: Autoencoder, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a module in bfloat16 with gradients to its float32 weights, normalisations included (see tokenizer.py)."""
    weights = {name: weight.to(torch.bfloat16) for name, weight in module.named_parameters()}
    decoded, features, quantised = torch.func.functional_call(module, weights, (videos.to(torch.bfloat16),))
    return decoded.float(), features.float(), quantised.float()


def training_loss(module: Autoencoder, videos: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of the pixels and of their differences, commitment to the codes; and the mean squared error."""
    run = in_bfloat16 if videos.device.type == "cuda" else Autoencoder.__call__
    decoded, features, quantised = run(module, videos)
    error = F.mse_loss(decoded, videos)
    loss = F.l1_loss(decoded, videos) + 2 * error + 0.4 * differences(decoded, videos)
    return loss + COMMITMENT * F.mse_loss(features, quantised), error


@torch.inference_mode()
def evaluate(tokenizer: VideoTokenizer, preset: VideoPreset, device: torch.device, count: int = 128) -> float:
    """Mean PSNR in dB (peak to peak 2) of held-out clips through the tokenizer."""
    clips, values = held_out_clips(count, seed=1), []
    for start in range(0, count, 16):
        part = clips[start : start + 16]
        videos = render_clips(part, range(start, start + len(part)), *preset.clip_size, device=device)
        decoded = tokenizer.decode(quantise(encode(tokenizer, videos), preset.passes)[1]).clamp(-1, 1)
        values.append(10 * torch.log10(4 / (decoded - videos).square().mean(dim=(1, 2, 3, 4))))
    return float(torch.cat(values).mean())


def _values(loss: Tensor, error: Tensor) -> dict[str, float]:
    return {"loss": loss.item(), "psnr": 10 * math.log10(4 / error.item())}


def load_tokenizer(preset: VideoPreset, path: Path, device: torch.device) -> VideoTokenizer:
    """A finished tokenizer, frozen."""
    tokenizer = VideoTokenizer(preset.model.tokenizer)
    fill_module(tokenizer, read_state(path), str(path))
    return tokenizer.to(device).eval().requires_grad_(False)


def train(options: Options) -> bool:
    """Trains, or goes on; writes ``tokenizer.safetensors`` and its card. Says whether it is finished."""
    torch.manual_seed(options.seed)
    preset, device = options.preset, options.device
    module = Autoencoder(preset).to(device)
    if folding_is_faster(device, preset.layers):
        fold_convolutions(module)
    channels_last(module)
    stage = Stage("tokenizer", module, options, PEAK_LR, decay=0.01)
    seed = options.data_seed(stage.progress.step)
    torch.manual_seed(seed)
    source = ClipSource(seed, device, preset.clip_size)
    waiting: list[Tensor] = []
    # Most of the time on a GPU goes into elementwise work, which compiling fuses: twice as fast, after two minutes.
    loss_of = torch.compile(training_loss, dynamic=False) if device.type == "cuda" else training_loss
    while stage.running:
        waiting = waiting or list(source.sample(preset.rendered)[2].split(preset.tokenizer_batch))
        videos = waiting.pop()
        loss, error = loss_of(module, videos)
        stage.minimise(loss, len(videos))
        stage.say(partial(_values, loss, error))
    if stage.group.leads:
        export(stage, options)
    return stage.close()


def export(stage: Stage, options: Options) -> None:
    """Writes the averaged weights, and what they do to held-out clips."""
    preset, device, path = options.preset, options.device, options.out / "tokenizer.safetensors"
    averaged = stage.averaged()
    assert isinstance(averaged, Autoencoder)
    save_weights(path, averaged.tokenizer.state_dict(), torch.float16)
    psnr = evaluate(load_tokenizer(preset, path, device), preset, device)
    card = {"psnr_held_out_db": psnr} | stage.info(options) | {"command": command_line("video.tokenizer")}
    write_card(options.out / "tokenizer.json", card)
    print(f"tokenizer: {psnr:.2f} dB on held-out clips", flush=True)


if __name__ == "__main__":
    train(Options.parse(__doc__, 2.5))
