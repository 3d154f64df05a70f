"""Goldens of the VAREdit family: whole edits, from a source image to the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepvar.conformance import infinity
from stepvar.conformance.golden import Golden, Kind, Record
from stepvar.conformance.infinity import RecordingInfinity
from stepvar.conformance.recording import noted_blocks
from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import TokenMap
from stepvar.media.squares import cut_from_square, padded_square
from stepvar.models.infinity.schedules import schedule_for
from stepvar.models.varedit.inputs import pixels_of
from stepvar.models.varedit.model import EditCondition, EditState, VAREdit, averaged, source_pass


class RecordingVAREdit(RecordingInfinity):
    """Also notes the source pass, and how many keys each block sees."""

    model: VAREdit

    def begin(self, staged: Any, plan: Plan) -> EditState:
        state = self.model.begin(staged, plan, noted_blocks(self.record, "source_blockout"))
        step = source_pass(plan)
        self.record["cond_BD"] = state.condition.pooled
        self.record["source_tokens"] = self.model.next_tokens(staged.source, step)
        self.keys_seen = [[step.grid.size] * plan.depth]
        for one in plan.steps:
            for name, part in zip("kv", state.source.read(0, step.row_slice), strict=True):
                self.record[f"ref_{name}_{one.index}"] = averaged(part, step.grid, one.grid)
        return state

    def predict(self, state: Any, tokens: TokenMap, step: Step) -> Tensor:
        cache = state.cache
        self.keys_seen.append([end - start for start, end in zip(cache.starts, cache.lengths, strict=True)])
        self.record["keys_seen"] = torch.tensor(self.keys_seen, dtype=torch.int32)
        return super().predict(state, tokens, step)


def run_generation(golden: Golden) -> Record:
    """Edits what the golden describes and returns everything that it may store, by name."""
    model = infinity.build_model(golden, VAREdit).to(golden.dtype)
    record: Record = {}
    if "source_picture_u8" in golden.tensors:
        picture = Image.fromarray(golden.tensor("source_picture_u8").cpu().numpy())
        side = schedule_for(golden.setting("pn"), 1.0)[-1].w * model.config.stride
        square = padded_square(picture, side)
        record["source_square_u8"] = levels_of(square)
        pixels = pixels_of([square])
    else:
        cells = Image.fromarray(golden.tensor("source_blocks_u8").cpu().numpy())
        pixels = F.interpolate(pixels_of([cells]), scale_factor=model.config.stride, mode="nearest")
    record["source_latent"] = model.tokenizer.encode_latent(pixels.to(golden.device))
    text, source = infinity.read_condition(golden), golden.resume("source_latent", record["source_latent"])
    condition = EditCondition(text.prompts, text.negative, source)
    settings = infinity.read_settings(golden)
    method, recording = infinity.read_method(golden, settings.schedule), RecordingVAREdit(model, {})
    recorded, _ = infinity.record_generation(golden, recording, settings, method, condition=condition)
    record |= recorded
    head = golden.config.get("source_head")
    record |= {
        name.replace("blockout", "blockout_head"): value[:, :head]
        for name, value in record.items()
        if name.startswith("source_blockout")
    }
    if "img_u8_bgr" in record and "source_square_u8" in record:
        edited = Image.fromarray(record["img_u8_bgr"][0].flip(-1).cpu().numpy())
        record["picture_out_u8"] = levels_of(cut_from_square(edited, picture.size))
    return record


def levels_of(image: Image.Image) -> Tensor:
    """The levels (H, W, 3) of an RGB image."""
    return torch.from_numpy(np.asarray(image).copy())


KINDS = (
    Kind(
        "varedit",
        run_generation,
        inputs=r"text_\w+|neg_\w+|source_(picture|blocks)_u8",
        settings=frozenset({"cfg_insertion_layer", "embed_dim", "Ct5"}),
        early=r"source_(square_u8|latent|tokens)|cond_BD|ca_kv|hidden_0|logits_0|blockout_s0_\w+|img_f32(_crop)?",
        reduced="the source, the text, the first scale, and the decoder on the golden's codes",
    ),
)
