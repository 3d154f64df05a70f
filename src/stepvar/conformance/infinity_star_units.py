"""Goldens of single functions of InfinityStar: rotary positions, projected guidance, a block, resampling, decoding."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.goldens import Golden
from stepvar.conformance.infinity_star import build_model, read_schedule
from stepvar.conformance.infinity_star_tokenizer import UNIT_INPUTS as TOKENIZER_INPUTS
from stepvar.conformance.infinity_star_tokenizer import tokenizer_units
from stepvar.conformance.recording import Record
from stepvar.conformance.setup import Setup
from stepvar.core.guidance import ProjectedGuidance
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.models.infinity_star.model import InfinityStar, clip_slices
from stepvar.models.infinity_star.rope import RotaryTable, text_coordinates, token_coordinates
from stepvar.models.infinity_star.transformer import BlockContext
from stepvar.models.layers import Rotary, grouped_attention

STAR_UNIT_INPUTS = rf"{TOKENIZER_INPUTS}|apg_(un)?cond|block0_\w+_in"

BLOCK_PASS = 2
"""The pass whose coordinates the tokens of the golden's block have."""


def is_star_units(about: dict[str, Any]) -> bool:
    return {"rope_text_first8", "apg_cond", "block0_vis_in"} <= about["tensors"].keys()


@torch.inference_mode()
def run_star_units(golden: Golden, setup: Setup) -> Record:
    """Calls each function with the golden's inputs; all but the decoder and the block in float32."""
    model = build_model(golden).to(setup.device, setup.dtype)
    schedule = read_schedule(golden)
    table = RotaryTable(model.config.head_dim, model.config.text_maxlen + len(schedule), setup.device)
    record = tokenizer_units(golden, setup) | _blocks(golden, model, table, schedule)
    for name in golden.tensors:
        if name == "rope_text_first8":
            record[name] = _stacked(table.at(text_coordinates(8, setup.device)))
        elif found := re.fullmatch(r"rope_s(\d+)_rep0", name):
            record[name] = _stacked(_pass_rotary(table, schedule, model, int(found[1])))
        elif found := re.fullmatch(r"apg_out_s(\d+)_t(\d+)", name):
            # A threshold that begins with 0 is a fraction: t005 is 0.05, t10 is 10.
            threshold = float(f"0.{found[2][1:]}" if found[2].startswith("0") else found[2])
            values = torch.cat([golden.tensor("apg_cond"), golden.tensor("apg_uncond")]).to(setup.device)
            record[name] = ProjectedGuidance(threshold)(values, float(found[1]))
    return record


def _stacked(rotary: Rotary) -> Tensor:
    """Cosines and sines (2, N, head_dim / 2)."""
    return torch.stack([part[0, 0] for part in rotary])


def _pass_rotary(table: RotaryTable, schedule: ScaleSchedule, model: InfinityStar, entry: int) -> Rotary:
    """Positions of the first repetition of a scale; ``entry`` counts the scales of all clips."""
    firsts = [
        index
        for index in range(len(schedule))
        if index == 0
        or (schedule.clip(index), schedule.scale(index)) != (schedule.clip(index - 1), schedule.scale(index - 1))
    ]
    index = firsts[entry]
    first = clip_slices(schedule)[schedule.clip(index)].start
    return table.at(_coordinates(schedule, index, model.config.text_maxlen + index, first, model.device))


def _coordinates(schedule: ScaleSchedule, index: int, scale: int, first: int, device: torch.device) -> Tensor:
    grid = schedule[index]
    positions = torch.arange(grid.size, device=device).unsqueeze(0)
    frame = schedule.frame or schedule.grids[-1]
    return token_coordinates(positions, grid, frame, scale, range(first, first + grid.t))


def _blocks(golden: Golden, model: InfinityStar, table: RotaryTable, schedule: ScaleSchedule) -> Record:
    """The first block on a text, and then on a pass that sees it."""
    kept: list[tuple[Tensor, Tensor]] = []

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.append((k, v))
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*kept, strict=True))
        return grouped_attention(q, keys, values)

    def block(name: str, coordinates: Tensor) -> Tensor:
        features = golden.tensor(name).to(model.device)
        context = BlockContext(lambda _: table.at(coordinates), attend, lambda run, tokens, ref: run(tokens))
        tokens = TokenMap.dense(features, Grid(1, 1, features.shape[1]))
        return model.block_list[0](tokens, 0, context).features

    text = block("block0_text_in", text_coordinates(golden.tensor("block0_text_in").shape[1], model.device))
    size = golden.tensor("block0_vis_in").shape[1]
    entry = next(index for index, grid in enumerate(schedule) if grid.size == size)
    coordinates = _coordinates(schedule, entry, model.config.text_maxlen + BLOCK_PASS, 0, model.device)
    return {"block0_text_out": text, "block0_vis_out": block("block0_vis_in", coordinates)}
