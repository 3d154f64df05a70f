"""Goldens of the Switti family: whole generations, with and without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, image_record
from stepvar.core.guidance import linear, relative_scales, within
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Settings, Step
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.infinity.model import InfinityState
from stepvar.models.layers import merge_heads
from stepvar.models.precision import for_weight
from stepvar.models.switti import PooledCondition, Switti, SwittiConfig
from stepvar.models.var.config import VQConfig
from stepvar.models.var.tokenizer import as_tokens
from stepvar.text import PooledFeatures, TextFeatures


class GoldenNoise(StreamNoise):
    """Takes the random numbers of each scale from the golden's tensors."""

    def __init__(self, golden: Golden) -> None:
        super().__init__(golden.generator())
        self.golden = golden

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        return self.golden.tensor(f"exp_{scale}").view(tuple(shape)).to(device)


class RecordingSwitti(RecordingModel[PooledCondition, InfinityState]):
    """Also notes the indices, or the soft codes in place of them."""

    model: Switti

    def accumulate(
        self,
        state: InfinityState,
        indices: Tensor,
        step: Step,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        if weights is None:
            self.note(step, "idx", indices)
        else:
            self.note(step, "soft", as_tokens(self.model.tokenizer.soft_codes(weights, step.grid)))
        super().accumulate(state, indices, step, weights, mask)


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    model = build_model(golden).to(golden.dtype)
    method, condition = Method(), read_condition(golden)
    record = read_text(golden, model)
    plan = method.plan(read_settings(golden, model), model.info, len(condition.prompts))
    state = generate(RecordingSwitti(model, record), condition, plan, method, GoldenNoise(golden))
    return record | image_record(golden, ("f_hat", state.latent), model.tokenizer.decode, unit_range=True)


def build_model(golden: Golden) -> Switti:
    """The model of a golden, its weights made by the rule, in float32."""
    config = SwittiConfig(
        depth=golden.setting("depth"),
        width=golden.setting("embed_dim"),
        heads=golden.setting("num_heads"),
        patch_nums=tuple(golden.setting("patch_nums")),
        cached=bool(golden.setting("use_ar")),
        crop_condition=bool(golden.setting("use_crop_cond")),
        rope_theta=float(golden.setting("rope_theta")),
        rope_size=float(golden.setting("rope_size")),
        tokenizer=VQConfig(golden.setting("V"), golden.setting("Cvae"), golden.setting("vae_ch")),
    )
    lists = {"transformer": "transformer_state_dict", "tokenizer": "vae_state_dict"}
    return build(golden, lambda: Switti(config), lists, ignorable=("lvl_1L", "attn_bias_for_masking"))


def read_condition(golden: Golden) -> PooledCondition:
    """The prompts, and the negative one for each of them."""
    lengths = tuple(map(int, golden.tensor("text_lens")))
    text = TextFeatures(golden.tensor("text_feats"), lengths)
    several = PooledFeatures(text, golden.tensor("text_pooled")).split()
    prompts, negative = PooledFeatures.stack(several[:-1]), several[-1]
    return PooledCondition(prompts, negative.repeat(len(prompts)))


def read_text(golden: Golden, model: Switti) -> Record:
    """What the text contributes, in a row for each prompt and one for the negative one; padding included."""
    transformer, dtype = model.transformer, model.precision.residual
    features = golden.tensor("text_feats").to(dtype)
    pooled = for_weight(golden.tensor("text_pooled"), transformer.text_pooler.weight)
    condition, crop = transformer.condition(features, pooled, None), transformer.crop()
    keys, values = (merge_heads(part) for part in (condition.memory[0].keys, condition.memory[0].values))
    record = {"cond_BD": condition.pooled, "ca_k_l0": keys, "ca_v_l0": values}
    return record if crop is None else record | {"crop_cond": crop}


def read_settings(golden: Golden, model: Switti) -> Settings:
    """The settings of the generation."""
    schedule = model.schedule()
    count, temperature = len(schedule), golden.setting("last_scale_temp")
    on, off = (golden.setting(f"turn_{way}_cfg_start_si") for way in ("on", "off"))
    alone = max(on, off)  # in front of ``on`` there is neither guidance nor temperature
    smooth = within(relative_scales(count), golden.setting("smooth_start_si"), off, outside=None)
    return Settings(
        schedule,
        guidance=within(linear(1 + golden.setting("cfg"), count), on, off, outside=1.0),
        temperature=within((1.0,) * count, 0, alone, outside=1.0 if temperature is None else temperature),
        top_k=golden.setting("top_k"),
        top_p=golden.setting("top_p"),
        smooth=smooth if golden.setting("more_smooth") else (),
        smooth_filtered=False,
    )


KINDS = (
    Kind(
        "switti",
        run_generation,
        inputs=r"text_\w+|exp_\d+",
        settings=frozenset({"use_ar", "turn_off_cfg_start_si"}),
        early=r"cond_BD|crop_cond|ca_[kv]_l\d+|hidden_0|logits_0|blockout_s0_\w+|img_f32(_crop)?",
        reduced="the text, the first scale, and the decoder on the golden's codes",
    ),
)
