"""Goldens of the InfinityStar family: images, videos and their continuations, the tokenizer, single functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, cropped
from stepvar.conformance.weights import STAR_RULE
from stepvar.core.guidance import AdaptiveProjectedGuidance, classifier_free_guidance
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import run_dense
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import CheckpointError
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.infinity_star.checkpoint import PARTS
from stepvar.models.infinity_star.codes import CodePass, codes_of, enlarge_codes, quantise, resample_frames, shrink
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.infinity_star.continuation import context_segments, continued
from stepvar.models.infinity_star.model import InfinityStar, StarState, VideoCondition
from stepvar.models.infinity_star.rope import RotaryTable, text_coordinates, token_coordinates
from stepvar.models.infinity_star.schedules import clip_schedule, clip_slices, code_passes
from stepvar.models.infinity_star.tokenizer import POLICY, VideoTokenizer, VideoTokenizerConfig
from stepvar.models.infinity_star.transformer import BlockContext
from stepvar.models.layers import Rotary, grouped_attention
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

    def accumulate(self, state: StarState, indices: Tensor, step: Step, weights: Tensor | None = None) -> None:
        if not step.forced:
            self.note(step, "bits", indices.flatten())
        self.model.accumulate(state, self.forced.get(step.index, indices), step)


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


# Single functions


def run_functions(golden: Golden) -> Record:
    """Calls each function with the golden's inputs; all but the decoder and the block in float32."""
    model = build_model(golden).to(golden.dtype)
    schedule = clip_schedule(read_clips(golden))
    table = RotaryTable(model.config.head_dim, model.config.text_maxlen + len(schedule), model.device)
    record = _resampling(golden) | _blocks(golden, model, table, schedule)
    tokenizer = build_tokenizer(golden)
    # The first pass of each scale of each clip.
    firsts = sorted({(schedule.clip(i), schedule.scale(i)): i for i in reversed(range(len(schedule)))}.values())
    for name in golden.tensors:
        if name == "rope_text_first8":
            record[name] = _stacked(table.at(text_coordinates(8, model.device)))
        elif found := re.fullmatch(r"rope_s(\d+)_rep0", name):
            index = firsts[int(found[1])]
            coordinates = _coordinates(schedule, index, model.config.text_maxlen + index, model.device)
            record[name] = _stacked(table.at(coordinates))
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


def _coordinates(schedule: ScaleSchedule, index: int, scale: int, device: torch.device) -> Tensor:
    grid = schedule[index]
    first = clip_slices(schedule)[schedule.clip(index)].start
    positions = torch.arange(grid.size, device=device).unsqueeze(0)
    return token_coordinates(positions, grid, schedule.frame or schedule.grids[-1], scale, range(first, first + grid.t))


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
    # Its coordinates are those of the third pass.
    coordinates = _coordinates(schedule, entry, model.config.text_maxlen + 2, model.device)
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
    Kind(
        "infinity star units",
        run_functions,
        inputs=r"vae_dec_in_T\d+|interp_\w+_in|codes_sem_bits|apg_(un)?cond|block0_\w+_in",
        stores=frozenset({"rope_text_first8", "apg_cond", "block0_vis_in"}),
        reduced="the decoder and a block; the rest in float32",
    ),
)
