"""The released checkpoints of the HART family: files, names of weights, sampling settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stepvar.models.family import Part, Variant
from stepvar.models.hart.config import RELEASED

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

DEFAULTS = {"guidance_scale": 4.5, "temperature": 1.0, "top_k": TOP_K, "top_p": 0.0, "more_smooth": True}
"""Of the published sample script."""

VARIANTS: dict[str, Variant] = {"0.7b": Variant(RELEASED, ("llm",), ("tokenizer",), DEFAULTS)}
"""The released model: two folders, each with a ``config.json`` of its own, which decides."""
