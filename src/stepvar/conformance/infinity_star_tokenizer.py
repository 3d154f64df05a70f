"""Goldens of InfinityStar's video tokenizer: encoding and coding a video, and what other goldens hold of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.checkpoints import fill_module
from stepvar.conformance.goldens import Golden
from stepvar.conformance.recording import Record
from stepvar.conformance.setup import Setup
from stepvar.conformance.weights import rule_weights, star_weight
from stepvar.core.tokens import Grid
from stepvar.errors import CheckpointError
from stepvar.models.infinity_star.checkpoint import PARTS
from stepvar.models.infinity_star.codes import CodePass, codes_of, enlarge_codes, quantise, resample_frames, shrink
from stepvar.models.infinity_star.tokenizer import POLICY, VideoTokenizer, VideoTokenizerConfig
from stepvar.models.precision import Precision, apply_precision

VIDEO_INPUTS = r"video|image|posterior_noise"
UNIT_INPUTS = r"vae_dec_in_T\d+|interp_\w+_in|codes_sem_bits"


def is_video_encode(about: dict[str, Any]) -> bool:
    return {"video", "posterior_noise", "raw_features"} <= about["tensors"].keys()


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
    """The tokenizer of a golden, its weights made by the rule, in float32 on the CPU.

    Raises:
        CheckpointError: if it has other weights than the list beside the golden says.
    """
    with torch.device("meta"):
        tokenizer = VideoTokenizer(tokenizer_config(golden))
    fill_part(tokenizer, golden, "tokenizer", "vae_params")
    return tokenizer.eval().requires_grad_(False)


def fill_part(module: nn.Module, golden: Golden, part: str, listed: str) -> None:
    """Gives a part of the model the weights of a golden, those that the list beside it names if it is there."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = rule_weights(_listed_shapes(golden, listed) or own, golden.setting("seed"), star_weight)
    fill_module(module, weights, f"{golden.path}: {part}", PARTS[part].ignorable)


def _listed_shapes(golden: Golden, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's weights, from the file beside the golden; empty if it is not there."""
    path = golden.path.with_name(golden.about.get("param_list", ""))
    if not path.is_file():
        return {}
    return {name: tuple(shape) for name, shape in json.loads(path.read_text(encoding="utf-8"))[part]}


def clips_of(golden: Golden) -> list[list[CodePass]]:
    """The passes of each clip of a golden's schedule."""
    grids = [Grid(*shape) for shape in golden.about["scale_schedule"]]
    full, detail = grids[-1], golden.setting("detail_scale_min_tokens")
    ends = [index + 1 for index, grid in enumerate(grids) if (grid.h, grid.w) == (full.h, full.w)]
    clips = []
    for clip, (begin, end) in enumerate(pairwise([0, *ends])):
        times = golden.setting("video_scale_repetition" if clip else "image_scale_repetition")
        passes = [(grid, 64 if grid.h * grid.w >= detail else 16) for grid in grids[begin:end]]
        clips.append([one for one, count in zip(passes, times, strict=False) for _ in range(count)])
    return clips


@torch.inference_mode()
def run_video_encode(golden: Golden, setup: Setup) -> Record:
    """Encodes the golden's video and codes it clip by clip.

    In low precision the codes start from the features that the golden stores.
    """
    tokenizer = build_tokenizer(golden).to(setup.device)
    apply_precision(tokenizer, Precision.of(setup.dtype), POLICY)
    record = encoding(golden, tokenizer, golden.tensor("video").to(setup.device))
    feature = record["raw_features"] if setup.exact else golden.tensor("raw_features").to(setup.device)
    return record | coding(feature, clips_of(golden))


def encoding(golden: Golden, tokenizer: VideoTokenizer, video: Tensor) -> Record:
    """What the encoder makes of a video, or of an image as a video of one frame."""
    noise = golden.tensor("posterior_noise").to(video.device)
    return {"enc_moments": tokenizer.moments(video), "raw_features": tokenizer.encode(video, noise)}


def coding(feature: Tensor, clips: Sequence[Sequence[CodePass]]) -> Record:
    """The bits of every pass, in the layout of the goldens (1, t, h, w, bits)."""
    bits, _ = quantise(feature, clips)
    return {f"gt_bits{index:03}": found.movedim(1, -1) for index, found in enumerate(bits)}


def decoding(tokenizer: VideoTokenizer, latent: Tensor) -> Record:
    """What the decoder makes of the sum of codes, as numbers and as the original's script saves it."""
    video = tokenizer.decode(latent)
    return {"decoded": video, "frames_u8_bgr": published_frames(video)}


def published_frames(video: Tensor) -> Tensor:
    """Video (B, 3, F, H, W) in [-1, 1] -> (B, F, H, W, 3) uint8 as the original's script makes it.

    Blue comes first, numbers are cut off instead of rounded, and the first frame is the second once more.
    """
    frames = ((video + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 4, 1).flip(-1)
    return torch.cat((frames[:, 1:2], frames[:, 1:]), dim=1)


@torch.inference_mode()
def tokenizer_units(golden: Golden, setup: Setup) -> Record:
    """Of a golden of single functions what belongs to the tokenizer: decoding, and resampling of codes.

    Resampling runs in float32: no model does it in lower precision.
    """
    tokenizer = build_tokenizer(golden).to(setup.device)
    apply_precision(tokenizer, Precision.of(setup.dtype), POLICY)
    record: Record = {}
    for name in golden.tensors:
        if found := re.fullmatch(r"vae_dec_in_T(\d+)", name):
            record[f"vae_dec_out_T{found[1]}"] = tokenizer.decode(golden.tensor(name).to(setup.device))
    coarse, fine = (golden.tensor(f"interp_{name}_in").to(setup.device) for name in ("sem", "down"))
    for name in ("interp_down_sem", "interp_down_det"):
        _, channels, _, height, width = golden.tensor(name).shape
        record[name] = resample_frames(fine, (channels, height, width), "area")
    _, channels, _, height, width = golden.tensor("interp_sem_up").shape
    record["interp_sem_up"] = enlarge_codes(coarse, channels, (height, width))
    record["resid_down"] = shrink(fine, Grid(*golden.tensor("resid_down").shape[2:]))
    larger = golden.tensor("resid_up").shape[2:]
    record["resid_up"] = F.interpolate(fine, size=larger, mode="trilinear", align_corners=False)
    record["codes_sem"] = codes_of(golden.tensor("codes_sem_bits").to(setup.device).movedim(-1, 1))
    return record
