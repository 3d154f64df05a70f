"""Goldens of FastVAR: its settings for a generation, and its rule alone."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.goldens import Golden
from stepvar.conformance.recording import Record
from stepvar.conformance.setup import Setup
from stepvar.core.tokens import Grid, ScaleSchedule, scatter_tokens
from stepvar.errors import CheckpointError
from stepvar.methods import FastVAR, Method
from stepvar.methods.cached_features import resample
from stepvar.methods.scores import distance_to_mean, top_tokens

FASTVAR_INPUTS = r"x|cache_\d+x\d+|area_in"


def read_method(golden: Golden, schedule: ScaleSchedule) -> Method:
    """The method of a generation: FastVAR where the golden has its settings, by width of the grid, else dense.

    Raises:
        CheckpointError: if its pruned scales are not neighbours in front of the skipped ones, behind the cached one.
    """
    settings = golden.config.get("fastvar")
    if settings is None:
        return Method()
    widths = [grid.w for grid in schedule]
    skip = sum(width in settings["skip_w"] for width in widths)
    run = widths[: len(widths) - skip]
    shares = tuple(settings["ratios"][str(width)] for width in run if str(width) in settings["ratios"])
    first, last = settings["layers"]
    method = FastVAR(prune=shares, skip=skip, blocks_before=first, blocks_after=golden.setting("depth") - last)
    cached = schedule[len(run) - len(shares) - 1]
    if [cached.h, cached.w] != settings["cached_hw"] or any(
        str(w) not in settings["ratios"] for w in run[-len(shares) :]
    ):
        raise CheckpointError(f"{golden.path}: fastvar settings {settings} are not those of neighbouring late scales")
    return method


def is_fastvar_units(about: dict[str, Any]) -> bool:
    return {"kept_sorted", "restored"} <= about["tensors"].keys()


@torch.inference_mode()
def run_fastvar_units(golden: Golden, setup: Setup) -> Record:
    """Selection, restoring twice the kept tokens over the cache, and resizing by area; in float32."""

    def value(name: str) -> Tensor:
        return golden.tensor(name).to(setup.device)

    x = value("x")
    side = round(x.shape[1] ** 0.5)  # the golden states no grid: its maps are square
    kept = top_tokens(distance_to_mean(x), golden.tensor("kept_sorted").shape[1])
    record: Record = {"kept_sorted": kept}
    for name in golden.tensors:
        if found := re.fullmatch(r"cache_(\d+)x(\d+)", name):
            cached = Grid(1, int(found[1]), int(found[2]))
            fresh = 2 * x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            past = resample(value(name), cached, Grid(1, side, side), "area")
            record["restored"] = scatter_tokens(past, kept, fresh)
        elif found := re.fullmatch(r"area_\d+_to_(\d+)", name):
            source, target = (Grid(1, size, size) for size in (value("area_in").shape[-1], int(found[1])))
            resized = resample(value("area_in").flatten(2).transpose(1, 2), source, target, "area")
            record[name] = resized.transpose(1, 2).unflatten(2, target.shape[1:])
    return record
