"""Goldens of single functions of the Infinity family: rotary positions, sampling, resampling.

The names of the tensors carry the settings, such as ``bit_sample_k900_p97_seed7``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.conformance.goldens import Golden
from stepvar.conformance.recording import Record
from stepvar.conformance.setup import Setup
from stepvar.core.noise import StreamNoise
from stepvar.core.sampling import sample, truncate
from stepvar.core.tokens import Grid
from stepvar.models.infinity import schedule_for
from stepvar.models.infinity.rope import rotary_table
from stepvar.models.infinity.tokenizer import resize
from stepvar.models.layers import rotate

UNIT_INPUTS = r"rope_in_\w+|bit_logits|lat_in|pixel_unshuffle_in"

Values = Callable[[str], Tensor]


@torch.inference_mode()
def run_units(golden: Golden, setup: Setup) -> Record:
    """Calls each function with the golden's inputs, in float32: no model runs these in lower precision."""
    ratios = [found[1] for name in golden.tensors if (found := re.match(r"rope_(\d+p?\d*)_hd", name))]
    ratio = float(ratios[0].replace("p", ".")) if ratios else 1.0

    def value(name: str) -> Tensor:
        return golden.tensor(name).to(setup.device)

    record: Record = {}
    for name in golden.tensors:
        if found := re.fullmatch(r"rope_\d+p?\d*_hd(\d+)_first(\d+)", name):
            record[name] = _rotary_tables(ratio, int(found[1]))[:, : int(found[2])]
        elif found := re.fullmatch(r"rope_out_([qk])_scale(\d+)", name):
            record[name] = _rotated(value(f"rope_in_{found[1]}"), ratio, int(found[2]))
        elif found := re.fullmatch(r"bit_(sample|filtered)_k(\d+)_p(\d+)(?:_seed(\d+))?", name):
            record[name] = _sampled(value("bit_logits"), found)
        elif found := re.fullmatch(r"lat_(?:up|(\d+x\d+)_down)_(\d+x\d+)", name):
            source = f"lat_up_{found[1]}" if found[1] else "lat_in"
            record[name] = _resized(value(source), found[2])
        elif name == "pixel_unshuffle_out":
            record[name] = F.pixel_unshuffle(value("pixel_unshuffle_in"), 2)
    return record


def _rotary_tables(ratio: float, head_dim: int) -> Tensor:
    """Cosines and sines (2, tokens, head_dim / 2) of all scales of the largest schedule, one behind the other."""
    schedule = schedule_for("1M", ratio)
    tables = [rotary_table(grid, _frame(ratio), head_dim) for grid in schedule]
    return torch.stack([torch.cat(part) for part in zip(*tables, strict=True)])


def _frame(ratio: float) -> Grid:
    schedule = schedule_for("1M", ratio)
    return schedule.frame or schedule.grids[-1]


def _rotated(values: Tensor, ratio: float, scale: int) -> Tensor:
    cos, sin = rotary_table(schedule_for("1M", ratio)[scale], _frame(ratio), values.shape[-1])
    return rotate(values, (cos.to(values.device), sin.to(values.device)))


def _sampled(logits: Tensor, found: re.Match[str]) -> Tensor:
    top_k, top_p = int(found[2]), float(f"0.{found[3]}")
    if found[1] == "filtered":
        return truncate(logits, top_k, top_p).isinf()
    return sample(logits, StreamNoise(torch.Generator().manual_seed(int(found[4]))), 0, top_k, top_p)


def _resized(latent: Tensor, size: str) -> Tensor:
    h, w = map(int, size.split("x"))
    return resize(latent.squeeze(2), (h, w)).unsqueeze(2)
