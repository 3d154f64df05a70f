"""The released checkpoints of the VAR family: files, names of weights, sampling settings."""

from __future__ import annotations

from stepvar.models.family import Family, Part, Variant
from stepvar.models.var.config import CONFIGS, VARConfig
from stepvar.models.var.inputs import ClassInputProcessor
from stepvar.models.var.model import VAR

# Those of the published metrics; guidance as this package counts it, one more than VAR does.
DEFAULTS = {"guidance_scale": 2.5, "temperature": 1.0, "top_k": 900, "top_p": 0.96}

VARIANTS: dict[str, Variant] = {
    name: Variant(config, (f"var_{name}.pth",), ("vae_ch160v4096z32.pth",), DEFAULTS)
    for name, config in CONFIGS.items()
}
"""The released models, which share one tokenizer."""

FAMILY = Family(
    name="var",
    repos=("FoundationVision/var", "FoundationVision/VAR"),
    variants=VARIANTS,
    default="d16",
    config=VARConfig.from_dict,
    build=VAR,
    parts={
        # Constants, and statistics of the training.
        "transformer": Part(("lvl_1L", "attn_bias_for_masking")),
        "tokenizer": Part(("quantize.ema_vocab_hit_SV",)),
    },
    inputs=lambda model, _: ClassInputProcessor(model.config.classes),
    guidance_schedule="linear",
)
