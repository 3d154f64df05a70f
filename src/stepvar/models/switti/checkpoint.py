"""The released checkpoints of the Switti family: repositories, names of weights, sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepvar.core.guidance import relative_scales, unguided_from, within
from stepvar.errors import CheckpointError
from stepvar.models.family import Family, Part, Variant
from stepvar.models.hart.checkpoint import read_part_config
from stepvar.models.switti.config import CONFIGS, SwittiConfig
from stepvar.models.switti.inputs import PooledInputProcessor
from stepvar.models.switti.model import Switti
from stepvar.text.clip import CLIP_TOWERS, CLIPEncoder

TOKENIZER_REPO = "yresearch/VQVAE-Switti"

SMOOTH_FROM = 2
"""The first scale that adds soft codes."""


def smooth_scales(count: int) -> tuple[float | None, ...]:
    """Soft codes from the third scale on for as long as there is guidance; later codes are sampled."""
    return within(relative_scales(count), SMOOTH_FROM, unguided_from(count), outside=None)


def _defaults(config: SwittiConfig) -> dict[str, Any]:
    """Those of the authors: of their notebook for 512x512, of their README for 1024x1024; guidance one more than theirs."""
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
    return SwittiConfig.published(read_part_config(parts["transformer"]), read_part_config(parts["tokenizer"]))


FAMILY = Family(
    name="switti",
    repos=("yresearch/Switti",),
    variants=VARIANTS,
    default="2.5b-512",
    config=SwittiConfig.from_dict,
    build=Switti,
    parts={
        # Constants; the mask alone has 357 MB at 1024x1024.
        "transformer": Part(("lvl_1L", "attn_bias_for_masking")),
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
