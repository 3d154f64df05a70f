"""Goldens of the VAR family: whole generations, and the tokenizer's encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.goldens import Golden, fill_golden
from stepvar.conformance.recording import Record, RecordBlocks, RecordingModel
from stepvar.conformance.setup import Setup
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Plan, Step, progress
from stepvar.core.tokens import ScaleSchedule
from stepvar.generation import generate
from stepvar.models.precision import Precision, apply_precision
from stepvar.models.var import VAR, ClassCondition, VARConfig, VQConfig, ramped_guidance
from stepvar.models.var.model import VARState
from stepvar.models.var.tokenizer import POLICY, VQTokenizer, as_tokens, shrink

CLASS_INPUTS = r"labels"


def is_classes(about: dict[str, Any]) -> bool:
    """Whether a golden is a generation by classes."""
    return {"patch_nums", "num_classes", "shared_aln", "cfg"} <= about.get("config", {}).keys()


def is_vq(about: dict[str, Any]) -> bool:
    """Whether a golden is an image through the tokenizer."""
    return {"patch_nums", "Cvae", "V", "vae_ch"} <= about.keys() and "img" in about["tensors"]


class RecordingVAR(RecordingModel[ClassCondition, VARState]):
    """Also notes the indices."""

    def accumulate(self, state: VARState, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        self.record[f"idx_{step.index}"] = symbols
        super().accumulate(state, symbols, step, weights)


@torch.inference_mode()
def run_classes(golden: Golden, setup: Setup) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name.

    In low precision only what comes before the first sampled index can be compared, and the decoder, which then
    gets the golden's codes.
    """
    model = build_model(golden).to(setup.device, setup.dtype)
    generator = torch.Generator().manual_seed(golden.config.get("g_seed") or 0)
    condition = read_classes(golden, generator)
    record: Record = {}
    state = generate(
        RecordingVAR(model, record),
        condition,
        len(condition.labels),
        read_plan(golden, model),
        RecordBlocks(record),
        StreamNoise(generator),
    )
    if setup.exact:
        return record | {"f_hat": state.latent, "img_f32": unit_range(model.decode(state))}
    early = {name: value for name, value in record.items() if name in ("hidden_0", "logits_0") or "_s0_" in name}
    if "f_hat" not in golden.tensors:
        return early
    state.latent = golden.tensor("f_hat").to(setup.device)
    return early | {"img_f32": unit_range(model.decode(state))}


def unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> in [0, 1]."""
    return (pixels + 1) / 2


def build_model(golden: Golden) -> VAR:
    """The model of a golden, its weights made by the rule, in float32 on the CPU.

    Raises:
        CheckpointError: if the model has other weights than the golden lists.
    """
    config = VARConfig(
        depth=golden.setting("depth"),
        width=golden.setting("embed_dim"),
        heads=golden.setting("num_heads"),
        patch_nums=tuple(golden.setting("patch_nums")),
        shared_adaln=bool(golden.setting("shared_aln")),
        classes=golden.setting("num_classes"),
        tokenizer=_tokenizer_config(golden),
    )
    with torch.device("meta"):
        model = VAR(config)
    for part, listed in (("transformer", "transformer_state_dict"), ("tokenizer", "vae_state_dict")):
        fill_golden(model.get_submodule(part), golden, f"{golden.path}: {part}", listed)
    return model.eval().requires_grad_(False)


def _tokenizer_config(golden: Golden) -> VQConfig:
    return VQConfig(golden.setting("V"), golden.setting("Cvae"), golden.setting("vae_ch"))


def read_classes(golden: Golden, generator: torch.Generator) -> ClassCondition:
    """The classes given, or where the golden names none the classes that its generator draws first."""
    given = golden.config.get("labels")
    if given is not None:
        return ClassCondition(tuple(given if isinstance(given, list) else golden.tensor("labels").tolist()))
    even = torch.full((golden.setting("num_classes"),), 1 / golden.setting("num_classes"))
    drawn = even.multinomial(len(golden.tensor("labels")), replacement=True, generator=generator)
    return ClassCondition(tuple(drawn.tolist()))


def read_plan(golden: Golden, model: VAR) -> Plan:
    """The settings of the generation."""
    schedule = model.schedule()
    return Plan(
        schedule,
        guidance=ramped_guidance(golden.setting("cfg"), len(schedule)),
        temperature=(1.0,) * len(schedule),
        top_k=golden.setting("top_k"),
        top_p=golden.setting("top_p"),
        smooth=progress(len(schedule)) if golden.config.get("more_smooth") else (),
    )


@torch.inference_mode()
def run_vq(golden: Golden, setup: Setup) -> Record:
    """Encodes the golden's image, quantises it scale by scale, decodes it.

    In low precision the quantiser and the decoder, too, start from what the golden stores.
    """
    with torch.device("meta"):
        tokenizer = VQTokenizer(_tokenizer_config(golden))
    fill_golden(tokenizer, golden, f"{golden.path}: tokenizer")
    apply_precision(tokenizer.to(setup.device), Precision.of(setup.dtype), POLICY)
    schedule = ScaleSchedule.of([(side, side) for side in golden.setting("patch_nums")])
    encoded = tokenizer.encode_latent(golden.tensor("img").to(setup.device))
    latent = encoded if setup.exact else golden.tensor("f").to(setup.device)
    indices, total = tokenizer.quantise(latent, schedule)
    codes = total if setup.exact else golden.tensor("f_hat_last").to(setup.device)
    record = {"f": encoded, "f_hat_last": total, "rec": tokenizer.decode(codes)}
    record |= {f"idx_{scale}": index for scale, index in enumerate(indices)}
    sums = zip(schedule.grids[1:], tokenizer.sums(indices, schedule), strict=False)
    record["var_input"] = torch.cat([as_tokens(shrink(total, grid)) for grid, total in sums], dim=1)
    return record
