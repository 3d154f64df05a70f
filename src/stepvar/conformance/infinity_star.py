"""Goldens of the InfinityStar family: whole generations of pictures, videos and continued videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.goldens import Golden
from stepvar.conformance.infinity_star_tokenizer import coding, decoding, encoding, fill_part, tokenizer_config
from stepvar.conformance.recording import Record, RecordingModel
from stepvar.conformance.setup import Setup
from stepvar.core.guidance import ProjectedGuidance, classifier_free_guidance
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.generation import generate
from stepvar.methods import Dense
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.infinity_star.continuation import continued, remembered_segments
from stepvar.models.infinity_star.model import InfinityStar, StarState, VideoCondition
from stepvar.models.infinity_star.schedules import clip_schedule, code_passes
from stepvar.text import TextFeatures

STAR_INPUTS = r"text_embeds|image|video|posterior_noise|former_clip_features|first_frame_features"


def is_star(about: dict[str, Any]) -> bool:
    """Whether a golden is a generation of InfinityStar."""
    transformer = about.get("config", {}).get("transformer", {})
    return "num_key_value_heads" in transformer and "step000.logits" in about["tensors"]


class RecordingStar(RecordingModel[VideoCondition, StarState]):
    """Notes what the goldens store of every pass; with ``given`` bits in place of those that it draws.

    Where nothing reads a pass whose bits are given, our loop does not compute it. The original does, and its
    goldens store what came out, so here ``forced`` passes are computed and their bits replaced behind.
    """

    def __init__(self, model: InfinityStar, record: Record, forced: dict[int, Tensor] | None = None) -> None:
        super().__init__(model, record)
        self.star, self.forced = model, forced or {}

    def start(self, condition: VideoCondition, plan: Plan, method: Any) -> StarState:
        self.record["prefix_tokens"] = self.star.text(condition, plan.guided)[0]
        return self.star.start(condition, plan, method)

    def embed(self, state: StarState, step: Step) -> TokenMap:
        tokens = self.star.embed(state, step)
        self._note(step, "tokens_in", tokens.features[:1])
        return tokens

    def predict(self, state: StarState, tokens: TokenMap, step: Step) -> Tensor:
        self._note(step, "hidden", tokens.features[:1])
        self._note(step, "logits", self.star.transformer.logits(tokens.features, step.scale).flatten(2))
        return self.star.predict(state, tokens, step)

    def accumulate(self, state: StarState, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        if step.given is None:
            self._note(step, "bits", symbols.flatten())
        self.star.accumulate(state, self.forced.get(step.index, symbols), step)

    def _note(self, step: Step, name: str, value: Tensor) -> None:
        self.record[f"step{step.index:03d}.{name}"] = value


@torch.inference_mode()
def run_star(golden: Golden, setup: Setup) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name.

    In low precision only what comes before the first sampled bit can be compared, and the decoder, which then
    gets the golden's codes.
    """
    model = build_model(golden).to(setup.device, setup.dtype)
    record: Record = {}
    interactive = "former_clip_features" in golden.tensors
    schedule = read_schedule(golden)
    plan = read_plan(golden, schedule)
    condition = _condition(golden, record, model, setup, schedule)
    if "image" in golden.tensors:
        bits = _encode(golden, model, schedule, record, setup)
        generate(RecordingStar(model, record, bits), condition, 1, plan, Dense(), _noise(golden))
        plan = replace(plan, given=bits)
    state = generate(RecordingStar(model, record), condition, 1, plan, Dense(), _noise(golden))
    if not setup.exact:
        record = {name: value for name, value in record.items() if _before_first_bit(name)}
    codes = state.latent
    if interactive:
        codes = continued(golden.tensor("former_clip_features").to(codes), codes)
    if setup.exact:
        record["summed_codes"] = codes
    codes = codes if setup.exact else golden.tensor("summed_codes").to(setup.device)
    return record | _frames(golden, model, codes, setup)


def build_model(golden: Golden) -> InfinityStar:
    """The model of a golden, its weights made by the rule, in float32 on the CPU.

    Raises:
        CheckpointError: if the model has other weights than the golden lists.
    """
    with torch.device("meta"):
        model = InfinityStar(read_config(golden))
    fill_part(model.transformer, golden, "transformer", "transformer_params")
    fill_part(model.tokenizer, golden, "tokenizer", "vae_params")
    return model.eval().requires_grad_(False)


def read_config(golden: Golden) -> InfinityStarConfig:
    """The shapes of the golden's model."""
    sizes = golden.setting("transformer")
    return InfinityStarConfig(
        depth=sizes["depth"],
        width=sizes["embed_dim"],
        heads=sizes["num_heads"],
        kv_heads=sizes["num_key_value_heads"],
        tokenizer=tokenizer_config(golden),
        ffn_ratio=sizes["mlp_ratio"],
        block_chunks=sizes["block_chunks"],
        text_channels=sizes["text_channels"],
        text_maxlen=golden.about.get("text_maxlen", 512),
        semantic_scales=golden.setting("semantic_scales"),
        image_repetitions=tuple(golden.setting("image_scale_repetition")),
        video_repetitions=tuple(golden.setting("video_scale_repetition")),
        clip_frames=golden.setting("frames_inner_clip"),
        latents=(),
    )


def read_schedule(golden: Golden) -> ScaleSchedule:
    """The schedule of a golden: a clip ends where the grids are as large as they become."""
    clips: list[list[tuple[Grid, int]]] = [[]]
    sides = golden.setting("scale_schedule")
    for t, h, w in sides:
        repetitions = golden.setting("video_scale_repetition" if len(clips) > 1 else "image_scale_repetition")
        clips[-1].append((Grid(t, h, w), repetitions[len(clips[-1])]))
        if [h, w] == sides[-1][1:]:
            clips.append([])
    return clip_schedule(clips[:-1])


def read_plan(golden: Golden, schedule: ScaleSchedule) -> Plan:
    """The settings of the generation; ``tau`` has one value per scale of a clip, without repetitions."""
    tau, offsets = golden.setting("tau"), [0]
    for count in schedule.scale_counts:
        offsets.append(offsets[-1] + count)
    places = range(len(schedule))
    projected = golden.about.get("guidance_kind") != "cfg" and golden.setting("use_apg")
    return Plan(
        schedule,
        guidance=(float(golden.setting("guidance")),) * len(schedule),
        temperature=tuple(float(tau[offsets[schedule.clip(i)] + schedule.scale(i)]) for i in places),
        top_k=0 if "g_seed" in golden.about else 1,
        mix=ProjectedGuidance(golden.setting("apg_norm_threshold")) if projected else classifier_free_guidance,
    )


def _noise(golden: Golden) -> StreamNoise:
    return StreamNoise(torch.Generator().manual_seed(golden.about.get("g_seed", 0)))


def _condition(
    golden: Golden, record: Record, model: InfinityStar, setup: Setup, schedule: ScaleSchedule
) -> VideoCondition:
    text = golden.tensor("text_embeds")
    prompts = TextFeatures(text.unsqueeze(0), (len(text),))
    if "former_clip_features" not in golden.tensors:
        return VideoCondition(prompts)
    former, first = (golden.tensor(f"{name}_features").to(setup.device) for name in ("former_clip", "first_frame"))
    segments = remembered_segments(former, first, schedule)
    for name, segment in zip(("semantic", "detail"), segments, strict=True):
        record[f"cond_{name}_tokens"] = model.segment_tokens(segment)
    return VideoCondition(prompts, segments=segments)


def _encode(
    golden: Golden, model: InfinityStar, schedule: ScaleSchedule, record: Record, setup: Setup
) -> dict[int, Tensor]:
    """The bits of the golden's picture for the passes of the first clip, by pass."""
    record |= encoding(golden, model.tokenizer, golden.tensor("image").to(setup.device))
    feature = record["raw_features"]
    record["recon_from_raw"] = model.tokenizer.decode(feature).clamp(-1, 1)
    bits = coding(feature, code_passes(model.config, schedule)[:1])
    record |= bits
    return {index: bit.flatten(1, 3).long() for index, bit in enumerate(bits.values())}


def _before_first_bit(name: str) -> bool:
    return name.startswith(("step000.tokens_in", "step000.hidden", "step000.logits", "prefix", "cond_"))


def _frames(golden: Golden, model: InfinityStar, codes: Tensor, setup: Setup) -> Record:
    """The decoded video in the forms that goldens use."""
    if not {"decoded", "frames_u8_bgr", "frames_u8_bgr_last4"} & golden.tensors.keys():
        return {}
    record = decoding(model.tokenizer, codes)
    record["frames_u8_bgr_last4"] = record["frames_u8_bgr"][:, -4:]
    return record if setup.exact else {"decoded": record["decoded"]}
