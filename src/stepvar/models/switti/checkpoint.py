"""The released checkpoints of the Switti family: repositories, names of weights, sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stepvar.core.guidance import relative_scales, unguided_from, within
from stepvar.errors import CheckpointError
from stepvar.models.family import Family, Part, Variant
from stepvar.models.hart.checkpoint import read_part_config
from stepvar.models.switti.config import CONFIGS, SwittiConfig
from stepvar.models.switti.inputs import PooledInputProcessor
from stepvar.models.switti.model import Switti
from stepvar.text.clip import CLIP_TOWERS, CLIPEncoder

MASK = "attn_bias_for_masking"

TOKENIZER_REPO = "yresearch/VQVAE-Switti"

SMOOTH_FROM = 2
"""The first scale that adds soft codes."""


def smooth_scales(count: int) -> tuple[float | None, ...]:
    """Soft codes from the third scale on for as long as there is guidance; later codes are sampled."""
    return within(relative_scales(count), SMOOTH_FROM, unguided_from(count), outside=None)


def _defaults(config: SwittiConfig) -> dict[str, Any]:
    """Of the authors' notebook for 512x512, of their README for 1024x1024; their guidance is one less than ours."""
    count = len(config.patch_nums)
    guided = unguided_from(count)
    return {
        "guidance_scale": 7.0,
        "guidance_schedule": "linear-late-window" if config.pixels == 512 else "linear-window",
        "temperature": (1.0,) * guided + (0.1,) * (count - guided),
        "top_k": 400,
        "top_p": 0.95,
        "more_smooth": True,
    }


def _variant(repo: str, config: SwittiConfig) -> Variant:
    repos = {"transformer": f"yresearch/{repo}", "tokenizer": TOKENIZER_REPO}
    return Variant(config, (repo,), ("VQVAE-Switti",), _defaults(config), repos)


VARIANTS: dict[str, Variant] = {
    "2.5b-512": _variant("Switti", CONFIGS["2.5b-512"]),
    "2.5b-512-ar": _variant("Switti-AR", CONFIGS["2.5b-512-ar"]),
    "2.5b-1024": _variant("Switti-1024", CONFIGS["2.5b-1024"]),
    "2.5b-1024-ar": _variant("Switti-1024-AR", CONFIGS["2.5b-1024-ar"]),
}
"""The released models, each a repository with a ``config.json``, which decides; they share one tokenizer."""


def read_released(parts: Mapping[str, Path]) -> SwittiConfig:
    """The configuration that the folders of a release state.

    Raises:
        CheckpointError: if a file is missing or cannot be read, or describes a model that is not supported.
    """
    transformer = parts["transformer"]
    config = SwittiConfig.published(read_part_config(transformer), read_part_config(parts["tokenizer"]))
    for path in sorted(transformer.glob("*.safetensors")) if transformer.is_dir() else [transformer]:
        cached = stored_cached(path)
        if cached is not None and cached != config.cached:
            raise CheckpointError(
                f"{path}: these weights were trained with use_ar={cached}, and the config.json beside them says "
                f"use_ar={config.cached}; fetch both again"
            )
    return config


def stored_cached(path: Path) -> bool | None:
    """Whether weights are those of a model with a cache, by the mask of the training beside them: nothing else tells.

    None where there is no mask, or the file is none that can be looked into.
    """
    try:
        with safe_open(path, "pt") as stored:
            if MASK not in stored.keys():  # noqa: SIM118  (it is no mapping)
                return None
            return bool(stored.get_slice(MASK)[0, 0, 1, 0] == 0)  # the second scale sees the first, or not
    except (SafetensorError, OSError, IndexError):
        return None  # reading the weights will say what is wrong


FAMILY = Family(
    name="switti",
    repos=("yresearch/Switti",),
    variants=VARIANTS,
    default="2.5b-512",
    config=SwittiConfig.from_dict,
    build=Switti,
    parts={
        # Constants; the mask alone has 357 MB at 1024x1024.
        "transformer": Part(("lvl_1L", MASK), exact=("crop_embed.weight",)),
        "tokenizer": Part(("quantize.ema_vocab_hit_SV",)),
    },
    inputs=lambda model, encoder: PooledInputProcessor(encoder, model.config),
    text_encoder=CLIP_TOWERS,
    encoder=lambda source, _: CLIPEncoder(source),
    released_config=read_released,
    relative_scales=smooth_scales,
    filtered_soft_codes=False,
    guidance_schedule="linear-window",
)
