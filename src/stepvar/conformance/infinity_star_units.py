"""Goldens of single functions of InfinityStar: rotary positions, projected guidance, a block, resampling, decoding."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record
from stepvar.conformance.infinity_star import build_model, build_tokenizer, read_schedule
from stepvar.core.guidance import AdaptiveProjectedGuidance
from stepvar.core.stack import run_dense
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.models.infinity_star.codes import codes_of, enlarge_codes, resample_frames, shrink
from stepvar.models.infinity_star.model import InfinityStar
from stepvar.models.infinity_star.rope import RotaryTable, text_coordinates, token_coordinates
from stepvar.models.infinity_star.schedules import clip_slices
from stepvar.models.infinity_star.transformer import BlockContext
from stepvar.models.layers import Rotary, grouped_attention

BLOCK_PASS = 2
"""The pass whose coordinates the tokens of the golden's block have."""


@torch.inference_mode()
def run_functions(golden: Golden) -> Record:
    """Calls each function with the golden's inputs; all but the decoder and the block in float32."""
    model = build_model(golden).to(golden.dtype)
    schedule = read_schedule(golden)
    table = RotaryTable(model.config.head_dim, model.config.text_maxlen + len(schedule), model.device)
    record = _resampling(golden) | _blocks(golden, model, table, schedule)
    tokenizer = build_tokenizer(golden)
    for name in golden.tensors:
        if name == "rope_text_first8":
            record[name] = _stacked(table.at(text_coordinates(8, model.device)))
        elif found := re.fullmatch(r"rope_s(\d+)_rep0", name):
            record[name] = _stacked(_pass_rotary(table, schedule, model, int(found[1])))
        elif found := re.fullmatch(r"apg_out_s(\d+)_t(\d+)", name):
            # A threshold that begins with 0 is a fraction: t005 is 0.05, t10 is 10.
            threshold = float(f"0.{found[2][1:]}" if found[2].startswith("0") else found[2])
            values = torch.cat([golden.tensor("apg_cond"), golden.tensor("apg_uncond")])
            record[name] = AdaptiveProjectedGuidance(threshold)(values, float(found[1]))
        elif found := re.fullmatch(r"vae_dec_in_T(\d+)", name):
            record[f"vae_dec_out_T{found[1]}"] = tokenizer.decode(golden.tensor(name))
    return record


def _stacked(rotary: Rotary) -> Tensor:
    """Cosines and sines (2, N, head_dim / 2)."""
    return torch.stack([part[0, 0] for part in rotary])


def _pass_rotary(table: RotaryTable, schedule: ScaleSchedule, model: InfinityStar, entry: int) -> Rotary:
    """Positions of the first repetition of a scale; ``entry`` counts the scales of all clips."""
    firsts: dict[tuple[int, int], int] = {}
    for index in range(len(schedule)):
        firsts.setdefault((schedule.clip(index), schedule.scale(index)), index)
    index = list(firsts.values())[entry]
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

    def block(features: Tensor, coordinates: Tensor) -> Tensor:
        context = BlockContext(lambda _: table.at(coordinates), attend, run_dense)
        tokens = TokenMap.dense(features, Grid(1, 1, features.shape[1]))
        return model.block_list[0](tokens, 0, context).features

    text, visual = golden.tensor("block0_text_in"), golden.tensor("block0_vis_in")
    record = {"block0_text_out": block(text, text_coordinates(text.shape[1], model.device))}
    entry = next(index for index, grid in enumerate(schedule) if grid.size == visual.shape[1])
    coordinates = _coordinates(schedule, entry, model.config.text_maxlen + BLOCK_PASS, 0, model.device)
    return record | {"block0_vis_out": block(visual, coordinates)}


def _resampling(golden: Golden) -> Record:
    """Resampling of codes, in float32: no model does it in lower precision."""
    record: Record = {}
    coarse, fine = golden.tensor("interp_sem_in"), golden.tensor("interp_down_in")
    for name in ("interp_down_sem", "interp_down_det"):
        _, channels, _, height, width = golden.tensor(name).shape
        record[name] = resample_frames(fine, (channels, height, width), "area")
    _, channels, _, height, width = golden.tensor("interp_sem_up").shape
    record["interp_sem_up"] = enlarge_codes(coarse, channels, (height, width))
    record["resid_down"] = shrink(fine, Grid(*golden.tensor("resid_down").shape[2:]))
    larger = golden.tensor("resid_up").shape[2:]
    record["resid_up"] = F.interpolate(fine, size=larger, mode="trilinear", align_corners=False)
    record["codes_sem"] = codes_of(golden.tensor("codes_sem_bits").movedim(-1, 1))
    return record


KINDS = (
    Kind(
        "infinity star units",
        run_functions,
        inputs=r"vae_dec_in_T\d+|interp_\w+_in|codes_sem_bits|apg_(un)?cond|block0_\w+_in",
        stores=frozenset({"rope_text_first8", "apg_cond", "block0_vis_in"}),
        reduced="the decoder and a block; the rest in float32",
    ),
)
