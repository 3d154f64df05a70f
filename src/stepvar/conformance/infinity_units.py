"""Goldens of single functions of the Infinity family and of FastVAR's rule.

The names of the tensors carry the settings, such as ``bit_sample_k900_p97_seed7``.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record
from stepvar.core.noise import StreamNoise
from stepvar.core.sampling import sample, truncate
from stepvar.core.tokens import Grid, scatter_tokens
from stepvar.methods.cached_features import resample
from stepvar.methods.scores import distance_to_mean, top_tokens
from stepvar.models.infinity import schedule_for
from stepvar.models.infinity.rope import rotary_table
from stepvar.models.infinity.tokenizer import resize
from stepvar.models.layers import rotate


@torch.inference_mode()
def run_functions(golden: Golden) -> Record:
    """Calls each function with the golden's inputs, in float32: no model runs these in lower precision."""
    ratios = [found[1] for name in golden.tensors if (found := re.match(r"rope_(\d+p?\d*)_hd", name))]
    ratio = float(ratios[0].replace("p", ".")) if ratios else 1.0
    record: Record = {}
    for name in golden.tensors:
        if found := re.fullmatch(r"rope_\d+p?\d*_hd(\d+)_first(\d+)", name):
            record[name] = _rotary_tables(ratio, int(found[1]))[:, : int(found[2])]
        elif found := re.fullmatch(r"rope_out_([qk])_scale(\d+)", name):
            record[name] = _rotated(golden.tensor(f"rope_in_{found[1]}"), ratio, int(found[2]))
        elif found := re.fullmatch(r"bit_(sample|filtered)_k(\d+)_p(\d+)(?:_seed(\d+))?", name):
            record[name] = _sampled(golden.tensor("bit_logits"), found)
        elif found := re.fullmatch(r"lat_(?:up|(\d+x\d+)_down)_(\d+)x(\d+)", name):
            latent = golden.tensor(f"lat_up_{found[1]}" if found[1] else "lat_in")
            record[name] = resize(latent.squeeze(2), (int(found[2]), int(found[3]))).unsqueeze(2)
        elif name == "pixel_unshuffle_out":
            record[name] = F.pixel_unshuffle(golden.tensor("pixel_unshuffle_in"), 2)
    return record


def _rotary_tables(ratio: float, head_dim: int) -> Tensor:
    """Cosines and sines (2, tokens, head_dim / 2) of all scales of the largest schedule, one behind the other."""
    schedule = schedule_for("1M", ratio)
    tables = [rotary_table(grid, schedule.frame or schedule.grids[-1], head_dim) for grid in schedule]
    return torch.stack([torch.cat(part) for part in zip(*tables, strict=True)])


def _rotated(values: Tensor, ratio: float, scale: int) -> Tensor:
    schedule = schedule_for("1M", ratio)
    cos, sin = rotary_table(schedule[scale], schedule.frame or schedule.grids[-1], values.shape[-1])
    return rotate(values, (cos.to(values.device), sin.to(values.device)))


def _sampled(logits: Tensor, found: re.Match[str]) -> Tensor:
    top_k, top_p = int(found[2]), float(f"0.{found[3]}")
    if found[1] == "filtered":
        return truncate(logits, top_k, top_p).isinf()
    return sample(logits, StreamNoise(torch.Generator().manual_seed(int(found[4]))), 0, top_k, top_p)


@torch.inference_mode()
def run_fastvar(golden: Golden) -> Record:
    """Selection, restoring twice the kept tokens over the cache, and resizing by area; in float32."""
    x = golden.tensor("x")
    side = round(x.shape[1] ** 0.5)  # the golden states no grid: its maps are square
    kept = top_tokens(distance_to_mean(x), golden.tensor("kept_sorted").shape[1])
    record: Record = {"kept_sorted": kept}
    for name in golden.tensors:
        if found := re.fullmatch(r"cache_(\d+)x(\d+)", name):
            cached = Grid(1, int(found[1]), int(found[2]))
            fresh = 2 * x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            past = resample(golden.tensor(name), cached, Grid(1, side, side), "area")
            record["restored"] = scatter_tokens(past, kept, fresh)
        elif found := re.fullmatch(r"area_\d+_to_(\d+)", name):
            area = golden.tensor("area_in")
            source, target = (Grid(1, size, size) for size in (area.shape[-1], int(found[1])))
            resized = resample(area.flatten(2).transpose(1, 2), source, target, "area")
            record[name] = resized.transpose(1, 2).unflatten(2, target.shape[1:])
    return record


KINDS = (
    Kind(
        "infinity units",
        run_functions,
        inputs=r"rope_in_\w+|bit_logits|lat_in|pixel_unshuffle_in",
        stores=frozenset({"bit_logits", "lat_in"}),
        reduced="all, in float32",
    ),
    Kind(
        "fastvar units",
        run_fastvar,
        inputs=r"x|cache_\d+x\d+|area_in",
        stores=frozenset({"kept_sorted", "restored"}),
        reduced="all, in float32",
    ),
)
