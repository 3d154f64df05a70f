"""Goldens of the InfinityStar family: images, videos and their continuations, and the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, cropped
from stepvar.conformance.weights import STAR_RULE
from stepvar.core.guidance import AdaptiveProjectedGuidance, classifier_free_guidance
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import CheckpointError
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.infinity_star.checkpoint import PARTS
from stepvar.models.infinity_star.codes import CodePass, quantise
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.infinity_star.continuation import context_segments, continued
from stepvar.models.infinity_star.model import InfinityStar, StarState, VideoCondition
from stepvar.models.infinity_star.schedules import clip_schedule, code_passes
from stepvar.models.infinity_star.tokenizer import POLICY, VideoTokenizer, VideoTokenizerConfig
from stepvar.models.precision import Precision, apply_precision
from stepvar.text import TextFeatures

IGNORABLE = [pattern for part in PARTS.values() for pattern in part.ignorable]


class RecordingStar(RecordingModel[VideoCondition, StarState]):
    """Notes what the goldens store of every pass.

    The originals compute also the passes whose bits are forced and that nothing reads, and their goldens store what
    came out: with ``forced`` here, all passes are computed and these bits replace the sampled ones.
    """

    naming = "step{index:03}.{name}"
    model: InfinityStar

    def __init__(self, model: InfinityStar, record: Record, forced: dict[int, Tensor] | None = None) -> None:
        super().__init__(model, record)
        self.forced = forced or {}

    def begin(self, staged: Any, plan: Plan) -> StarState:
        self.record["prefix_tokens"] = self.model.text(staged.text, plan.guided)
        return self.model.begin(staged, plan)

    def embed(self, state: StarState, step: Step) -> TokenMap:
        tokens = self.model.embed(state, step)
        self.note(step, "tokens_in", tokens.features[:1])
        return tokens

    def predict(self, state: StarState, tokens: TokenMap, step: Step) -> Tensor:
        self.note(step, "hidden", tokens.features[:1])
        self.note(step, "logits", self.model.transformer.logits(tokens.features, step.scale).flatten(2))
        return self.model.predict(state, tokens, step)

    def accumulate(
        self, state: StarState, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        if not step.forced:
            self.note(step, "bits", indices.flatten())
        self.model.accumulate(state, self.forced.get(step.index, indices), step, weights, mask)


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    model = build_model(golden).to(golden.dtype)
    record: Record = {}
    schedule, method = clip_schedule(read_clips(golden)), Method()
    settings, condition = read_settings(golden, schedule), _condition(golden, record, model, schedule)

    def run(recording: RecordingStar, forced: dict[int, Tensor]) -> StarState:
        plan = method.plan(replace(settings, forced=frozenset(forced)), model.info, 1)
        return generate(recording, condition, plan, method, StreamNoise(golden.generator()), forced)

    bits = _encode(golden, model, schedule, record) if "image" in golden.tensors else {}
    if bits:
        run(RecordingStar(model, record, bits), {})
    codes = run(RecordingStar(model, record), bits).latent
    if "former_clip_features" in golden.tensors:
        codes = continued(golden.tensor("former_clip_features").to(codes), codes)
    record["summed_codes"] = codes
    return record | _frames(golden, model, golden.resume("summed_codes", codes))


def build_model(golden: Golden) -> InfinityStar:
    """The model of a golden, its weights made by the rule, in float32."""
    lists = {"transformer": "transformer_params", "tokenizer": "vae_params"}
    return build(golden, lambda: InfinityStar(read_config(golden)), lists, STAR_RULE, IGNORABLE)


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


def read_clips(golden: Golden) -> list[list[tuple[Grid, int]]]:
    """The scales of each clip, with their repetitions: a clip ends where the grids are as large as they become."""
    clips: list[list[tuple[Grid, int]]] = [[]]
    sides = golden.setting("scale_schedule")
    for t, h, w in sides:
        repetitions = golden.setting("video_scale_repetition" if len(clips) > 1 else "image_scale_repetition")
        clips[-1].append((Grid(t, h, w), repetitions[len(clips[-1])]))
        if [h, w] == sides[-1][1:]:
            clips.append([])
    return clips[:-1]


def read_settings(golden: Golden, schedule: ScaleSchedule) -> Settings:
    """The settings of the generation; ``tau`` has one value per scale of a clip, without repetitions."""
    tau, offsets = golden.setting("tau"), [0, *accumulate(schedule.scale_counts)]
    places = range(len(schedule))
    projected = golden.about.get("guidance_kind") != "cfg" and golden.setting("use_apg")
    return Settings(
        schedule,
        guidance=(float(golden.setting("guidance")),) * len(schedule),
        temperature=tuple(float(tau[offsets[schedule.clip(i)] + schedule.scale(i)]) for i in places),
        top_k=0 if "g_seed" in golden.about else 1,
        combine=AdaptiveProjectedGuidance(golden.setting("apg_norm_threshold"))
        if projected
        else classifier_free_guidance,
    )


def _condition(golden: Golden, record: Record, model: InfinityStar, schedule: ScaleSchedule) -> VideoCondition:
    text = golden.tensor("text_embeds")
    prompts = TextFeatures(text.unsqueeze(0), (len(text),))
    if "former_clip_features" not in golden.tensors:
        return VideoCondition(prompts)
    former, first = (golden.tensor(f"{name}_features") for name in ("former_clip", "first_frame"))
    segments = context_segments(former, first, schedule)
    for name, segment in zip(("semantic", "detail"), segments, strict=True):
        record[f"cond_{name}_tokens"] = model.segment_tokens(segment)
    return VideoCondition(prompts, segments=segments)


def _encode(golden: Golden, model: InfinityStar, schedule: ScaleSchedule, record: Record) -> dict[int, Tensor]:
    """The bits of the golden's image for the passes of the first clip, by pass."""
    record |= _encoding(golden, model.tokenizer, "image")
    feature = record["raw_features"]
    record["recon_from_raw"] = model.tokenizer.decode(feature).clamp(-1, 1)
    bits = _coding(feature, code_passes(model.config, schedule)[:1])
    record |= bits
    return {index: bit.flatten(1, 3).long() for index, bit in enumerate(bits.values())}


def _frames(golden: Golden, model: InfinityStar, codes: Tensor) -> Record:
    """The decoded video in the forms that goldens use."""
    forms = {"decoded", "img_f32_crop", "frames_u8_bgr", "frames_u8_bgr_last4"}
    if not forms & golden.tensors.keys() or not (golden.exact or "summed_codes" in golden.tensors):
        return {}
    video = model.tokenizer.decode(codes)
    frames = published_frames(video)
    record = {"decoded": video, "frames_u8_bgr": frames, "frames_u8_bgr_last4": frames[:, -4:]}
    return record | cropped(golden, video.clamp(-1, 1))


def published_frames(video: Tensor) -> Tensor:
    """Video (B, 3, F, H, W) in [-1, 1] -> (B, F, H, W, 3) uint8 as the original's script makes it.

    Blue comes first, numbers are cut off instead of rounded, and the first frame is the second once more.
    """
    frames = ((video + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 4, 1).flip(-1)
    return torch.cat((frames[:, 1:2], frames[:, 1:]), dim=1)


# The tokenizer


def tokenizer_config(golden: Golden) -> VideoTokenizerConfig:
    """The tokenizer that a golden was made with.

    Raises:
        CheckpointError: if it has shapes that no published tokenizer has.
    """
    *channels, middle = golden.setting("vae_channels")
    if len(channels) != 4 or middle != channels[-1]:
        raise CheckpointError(f"{golden.path}: vae_channels must be five numbers, the last two of them equal")
    blocks = golden.setting("vae_layers_per_block")
    return VideoTokenizerConfig(tuple(channels), blocks=blocks, decoder_blocks=blocks + 1)


def build_tokenizer(golden: Golden) -> VideoTokenizer:
    """The tokenizer of a golden, its weights made by the rule, in the golden's precision."""
    config = tokenizer_config(golden)
    tokenizer = build(golden, lambda: VideoTokenizer(config), {"": "vae_params"}, STAR_RULE, IGNORABLE)
    apply_precision(tokenizer, Precision.of(golden.dtype), POLICY)
    return tokenizer


def run_tokenizer(golden: Golden) -> Record:
    """Encodes the golden's video and codes it clip by clip."""
    record = _encoding(golden, build_tokenizer(golden), "video")
    return record | _coding(golden.resume("raw_features", record["raw_features"]), read_code_passes(golden))


def read_code_passes(golden: Golden) -> list[list[CodePass]]:
    """The passes of each clip of a golden's schedule: their grids, and the bits of a cell."""
    detail = golden.setting("detail_scale_min_tokens")
    return [
        [(grid, 64 if grid.h * grid.w >= detail else 16) for grid, count in clip for _ in range(count)]
        for clip in read_clips(golden)
    ]


def _encoding(golden: Golden, tokenizer: VideoTokenizer, name: str) -> Record:
    """What the encoder makes of a video, or of an image as a video of one frame."""
    video = golden.tensor(name)
    moments, features = tokenizer.moments(video), tokenizer.encode(video, golden.tensor("posterior_noise"))
    return {"enc_moments": moments, "raw_features": features}


def _coding(feature: Tensor, clips: Sequence[Sequence[CodePass]]) -> Record:
    """The bits of every pass, in the layout of the goldens (1, t, h, w, bits)."""
    bits, _ = quantise(feature, clips)
    return {f"gt_bits{index:03}": found.movedim(1, -1) for index, found in enumerate(bits)}


KINDS = (
    Kind(
        "infinity star",
        run_generation,
        inputs=r"text_embeds|image|video|posterior_noise|former_clip_features|first_frame_features",
        settings=frozenset({"vae_channels", "transformer"}),
        stores=frozenset({"step000.logits"}),
        early=r"step000\.(tokens_in|hidden|logits)|prefix_tokens|cond_\w+|decoded|img_f32_crop",
        reduced="the text, the first pass, and the decoder on the golden's codes",
    ),
    Kind(
        "video tokenizer",
        run_tokenizer,
        inputs=r"video|image|posterior_noise",
        stores=frozenset({"video", "posterior_noise", "raw_features"}),
        reduced="the encoder, and the codes of the golden's features",
    ),
)
