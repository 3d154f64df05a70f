"""The released checkpoints of the HART family: files, names of weights, sampling settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stepvar.errors import CheckpointError
from stepvar.models.family import Part, Variant
from stepvar.models.hart.config import RELEASED, HARTConfig

REPOS = ("mit-han-lab/hart-0.7b-1024px",)
"""The repository on the hub."""

QWEN2 = "mit-han-lab/Qwen2-VL-1.5B-Instruct"
"""The text model, on the hub."""

TRANSFORMER_IGNORABLE = ("lvl_1L", "attn_bias_for_masking", "*inv_freq")
"""Constants that checkpoints store and generation does not need; the mask alone has 380 MB."""

TOKENIZER_IGNORABLE = (
    "disc.*",
    "vae.quantize.ema_vocab_hit_SV",
    "quantize.ema_vocab_hit_SV",
    "vae.decoder2.*",
    "vae.post_quant_conv2.*",
)
"""The discriminator of the training, statistics, and a second decoder that generation does not use."""

TOP_K = (600,) * 7 + (300,) * 7
"""Classes kept before sampling at each scale."""


def without_prefix(stored: Collection[str], own: Collection[str]) -> Mapping[str, str]:
    """Finds the tokenizer's weights beside the discriminator's, behind a level of naming."""
    return {name: f"vae.{name}" for name in own if f"vae.{name}" in stored}


PARTS: dict[str, Part] = {
    "transformer": Part(TRANSFORMER_IGNORABLE),
    "tokenizer": Part(TOKENIZER_IGNORABLE, rename=without_prefix),
}

DEFAULTS = {"guidance_scale": 5.5, "temperature": 1.0, "top_k": TOP_K, "top_p": 0.0, "more_smooth": True}
"""Of the published sample script."""

VARIANTS: dict[str, Variant] = {"0.7b": Variant(RELEASED, ("llm",), ("tokenizer",), DEFAULTS)}
"""The released model: two folders, each with a ``config.json`` of its own, which decides."""


def read_released(parts: Mapping[str, Path]) -> HARTConfig:
    """The configuration that the folders of a release state.

    Raises:
        CheckpointError: if a file is missing or cannot be read, or describes a model that is not supported.
    """
    transformer = _read(parts["transformer"])
    return HARTConfig.published(transformer, _read(parts["tokenizer"]))


def _read(part: Path) -> dict[str, Any]:
    """The ``config.json`` in a folder, or beside a file."""
    path = (part if part.is_dir() else part.parent) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; it says what the model is, fetch it too") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no configuration; fetch it again")
    return content
