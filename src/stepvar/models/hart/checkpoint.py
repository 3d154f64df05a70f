"""The released checkpoints of the HART family: files, names of weights, sampling settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stepvar.core.guidance import hold_last, relative_scales
from stepvar.errors import CheckpointError
from stepvar.models.family import Family, Part, Variant
from stepvar.models.hart.config import RELEASED, HARTConfig
from stepvar.models.hart.inputs import ContextInputProcessor
from stepvar.models.hart.model import HART
from stepvar.text import Qwen2Encoder
from stepvar.utils.reading import read_json

TOP_K = (600,) * 7 + (300,) * 7
"""Classes kept before sampling at each scale."""


def without_prefix(stored: Collection[str], own: Collection[str]) -> Mapping[str, str]:
    """Finds the tokenizer's weights beside the discriminator's, after a level of naming."""
    return {name: f"vae.{name}" for name in own if f"vae.{name}" in stored}


DEFAULTS = {"guidance_scale": 5.5, "temperature": 1.0, "top_k": TOP_K, "top_p": 0.0, "more_smooth": True}
"""Of the published sample script."""

VARIANTS: dict[str, Variant] = {"0.7b": Variant(RELEASED, ("llm",), ("tokenizer",), DEFAULTS)}
"""The released model: two folders, each with a ``config.json`` of its own, which decides."""


def read_released(parts: Mapping[str, Path]) -> HARTConfig:
    """The configuration that the folders of a release state.

    Raises:
        CheckpointError: if a file is missing or cannot be read, or describes a model that is not supported.
    """
    transformer = read_part_config(parts["transformer"])
    return HARTConfig.published(transformer, read_part_config(parts["tokenizer"]))


def read_part_config(part: Path) -> dict[str, Any]:
    """The ``config.json`` in a folder, or beside a file."""
    path = (part if part.is_dir() else part.parent) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{path}: missing; it says what the model is, fetch it too")
    return read_json(path, CheckpointError, "fetch it again")


FAMILY = Family(
    name="hart",
    repos=("mit-han-lab/hart-0.7b-1024px",),
    variants=VARIANTS,
    default="0.7b",
    config=HARTConfig.from_dict,
    build=HART,
    parts={
        # Constants; the mask alone has 380 MB.
        "transformer": Part(("lvl_1L", "attn_bias_for_masking", "*inv_freq")),
        # The discriminator of the training, statistics, and a second decoder that generation does not use.
        "tokenizer": Part(
            (
                "disc.*",
                "vae.quantize.ema_vocab_hit_SV",
                "quantize.ema_vocab_hit_SV",
                "vae.decoder2.*",
                "vae.post_quant_conv2.*",
            ),
            rename=without_prefix,
        ),
    },
    inputs=lambda model, encoder: ContextInputProcessor(encoder, model.config),
    text_encoder="mit-han-lab/Qwen2-VL-1.5B-Instruct",
    encoder=lambda source, config: Qwen2Encoder(source, slots=config.context_tokens),
    released_config=read_released,
    relative_scales=lambda count: hold_last(relative_scales(count)),
    guidance_schedule="linear-hold",
)
