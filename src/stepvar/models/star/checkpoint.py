"""The released checkpoints of the STAR family: files, names of weights, sampling settings."""

from __future__ import annotations

from stepvar.models.family import Family, Part, Variant
from stepvar.models.star.config import CONFIGS, STARConfig
from stepvar.models.star.inputs import STARInputProcessor
from stepvar.models.star.model import STAR
from stepvar.text import StableDiffusionEncoder
from stepvar.text.stable_diffusion import STABLE_DIFFUSION_2_1

DEFAULTS = {"guidance_scale": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 0.8}
"""Those of the published evaluation; guidance as this package counts it, one more than STAR does."""

FILES = {"d30-1024-sampler": ("var_rope_d30_1024_sampler_mask_0108-ar-ckpt-ep2-iter6000.pth",)}
"""The published demo names this one; the names of the others on the hub are not known."""

VARIANTS: dict[str, Variant] = {
    name: Variant(config, FILES.get(name, ()), ("vae_ch160v4096z32.pth",), DEFAULTS) for name, config in CONFIGS.items()
}
"""The released models, which share the tokenizer of VAR."""

FAMILY = Family(
    name="star",
    repos=("taocrayon/STAR",),
    tokenizer_repos=("FoundationVision/var", "FoundationVision/VAR"),
    variants=VARIANTS,
    default="d30-1024-sampler",
    config=STARConfig.from_dict,
    build=STAR,
    parts={
        # The table of classes is VAR's, which nothing reads; the others are constants and statistics.
        "transformer": Part(("class_emb.weight", "lvl_1L", "attn_bias_for_masking")),
        "tokenizer": Part(("quantize.ema_vocab_hit_SV",)),
    },
    inputs=lambda model, encoder: STARInputProcessor(encoder, model.config.text_channels),
    text_encoder=STABLE_DIFFUSION_2_1,
    encoder=lambda source, config: StableDiffusionEncoder(source, max_length=config.text_maxlen),
    guidance_schedule="linear",
)
