"""The released checkpoints of the VAR family: files, names of weights, sampling settings."""

from __future__ import annotations

from stepvar.models.family import Part, Variant
from stepvar.models.var.config import CONFIGS
from stepvar.models.var.tokenizer import IGNORABLE as TOKENIZER_IGNORABLE
from stepvar.models.var.transformer import IGNORABLE as TRANSFORMER_IGNORABLE

REPOS = ("FoundationVision/var", "FoundationVision/VAR")
"""The repository on the hub; both spellings are in use."""

PARTS: dict[str, Part] = {"transformer": Part(TRANSFORMER_IGNORABLE), "tokenizer": Part(TOKENIZER_IGNORABLE)}

DEFAULTS = {"guidance_scale": 2.5, "temperature": 1.0, "top_k": 900, "top_p": 0.96}
"""Of the published metrics; guidance as VAR counts it, see :func:`~stepvar.models.var.model.ramped_guidance`."""

VARIANTS: dict[str, Variant] = {
    name: Variant(config, (f"var_{name}.pth",), ("vae_ch160v4096z32.pth",), DEFAULTS)
    for name, config in CONFIGS.items()
}
"""The released models, which share one tokenizer."""
