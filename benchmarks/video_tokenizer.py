"""What decoding and encoding a video costs: ``python -m benchmarks.video_tokenizer --device cuda --out FILE``.

The published shape with random weights, whole frames, chunk by chunk. Each way of decoding runs once per round, in
turns: as it is; with what the norms read from the latent computed on every cell of the features, as the published
code does; with the weights in the layout that convolutions on GPUs like, and in it with 2D convolutions over three
frames side by side; and with twice the chunk.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command_line
from stepvar.core.report import start_clock
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.run import interleaved
from stepvar.evaluation.statistics import Spread
from stepvar.models.infinity_star.tokenizer import CHUNK, POLICY, VideoTokenizer, VideoTokenizerConfig
from stepvar.models.infinity_star.video_layers import CausalConv, LatentNorm, Past, latent_frames
from stepvar.models.precision import Precision, apply_precision, for_weight
from stepvar.utils.files import write_text
from training.video.convolution import folded

SMALL = VideoTokenizerConfig(channels=(24, 48, 96, 96))
"""For machines without a GPU."""


def on_every_cell(norm: LatentNorm, x: Tensor, past: Past, latent: Tensor) -> Tensor:
    """The norm by the latent as the published code computes it: the latent is enlarged first."""
    frames = latent_frames(x.shape[2], latent.shape[2], past.first, x.device)
    enlarged = F.interpolate(latent[:, :, frames], size=x.shape[2:])
    return norm.norm_layer(x, past).mul_(norm.conv_y(enlarged)).add_(norm.conv_b(enlarged))


def frames_as_channels(layer: CausalConv, x: Tensor, past: Past) -> Tensor:
    """A causal convolution as a 2D one over three frames side by side."""
    weight, bias = layer.conv.weight, layer.conv.bias
    assert bias is not None
    return folded(past.extend(layer, for_weight(x, weight)), weight, bias)


def channels_last(tokenizer: VideoTokenizer) -> VideoTokenizer:
    """A copy whose kernels lie as convolutions on GPUs like it."""
    other = copy.deepcopy(tokenizer)
    for weight in other.parameters():
        if weight.dim() == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    return other


def timed(work: Callable[[], Tensor], device: torch.device) -> tuple[float, int]:
    """Seconds, and on a GPU the most bytes held beside what was there before."""
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    stop = start_clock(device)
    work()
    seconds = stop()()
    return seconds, torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0


@torch.inference_mode()
def measure(config: VideoTokenizerConfig, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    tokenizer = VideoTokenizer(config).to(device).requires_grad_(False)
    apply_precision(tokenizer, Precision.of(dtype), POLICY)
    feature = torch.randn(1, config.token_channels, arguments.latents, arguments.height, arguments.width, device=device)
    pixels = (config.frames(arguments.latents), arguments.height * config.stride, arguments.width * config.stride)
    video = torch.zeros(1, 3, *pixels, device=device)
    last = channels_last(tokenizer)

    def enlarged() -> Tensor:
        with patch.object(LatentNorm, "forward", on_every_cell):
            return tokenizer.decode(feature)

    def as_images() -> Tensor:
        with patch.object(CausalConv, "forward", frames_as_channels):
            return last.decode(feature)

    ways: dict[str, Callable[[], Tensor]] = {
        "decode": lambda: tokenizer.decode(feature),
        "decode, latents enlarged": enlarged,
        "decode, channels last": lambda: last.decode(feature),
        "decode, channels last, 2D convolutions": as_images,
        "decode, twice the chunk": lambda: tokenizer.decode(feature, chunk=2 * CHUNK),
        "encode": lambda: tokenizer.moments(video),
    }
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    rounds = range(arguments.rounds)  # the round in front of them chooses kernels
    for _, name, found in interleaved(list(ways), rounds, lambda name, _: timed(ways[name], device), warmup=1):
        runs[name].append(found)
    return [row_of(name, found, runs["decode"]) for name, found in runs.items()]


def row_of(name: str, runs: list[tuple[float, int]], base: list[tuple[float, int]]) -> dict[str, Any]:
    ratio = Spread.of([run[0] / other[0] for run, other in zip(runs, base, strict=True)])
    row = {"way": name, "seconds": statistics.median(run[0] for run in runs), "peak": max(run[1] for run in runs)}
    return row | {"ratio": ratio.median, "ratio_low": ratio.lowest, "ratio_high": ratio.highest}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| | time | over decoding as it is | memory |", "|---|---|---|---|"]
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        peak = f"{row['peak'] / 2**30:.2f} GiB" if row["peak"] else ""
        lines.append(f"| {row['way']} | {row['seconds']:.2f} s | {spread} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--small", action="store_true", help="a quarter of the channels")
    parser.add_argument("--latents", type=int, default=21)
    parser.add_argument("--height", type=int, default=30, help="tokens")
    parser.add_argument("--width", type=int, default=53, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = measure(SMALL if arguments.small else VideoTokenizerConfig(), arguments)
    info = provenance(torch.device(arguments.device), command_line(__spec__)) | {"dtype": arguments.dtype}
    print(markdown(rows))
    if arguments.out:
        write_text(arguments.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
