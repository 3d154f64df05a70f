"""The released checkpoints of the Infinity family: files, names of weights, sampling settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stepvar.models.family import Family, Part, Variant
from stepvar.models.infinity.config import CONFIGS, InfinityConfig
from stepvar.models.infinity.inputs import TextInputProcessor
from stepvar.models.infinity.model import Infinity
from stepvar.text.t5 import FLAN_T5_XL


def plain_names(stored: Collection[str], own: Collection[str]) -> Mapping[str, str]:
    """Finds the tokenizer's weights in files without the level of naming around convolutions and norms.

    ``decoder.conv_in.conv.weight`` may be stored as ``decoder.conv_in.weight``, and ``...norm1.norm.bias`` as
    ``...norm1.bias``.
    """
    found = {}
    for name in set(own) - set(stored):
        *path, wrapper, last = name.split(".")
        plain = ".".join((*path, last))
        if wrapper in ("conv", "norm") and plain in stored:
            found[name] = plain
    return found


def _defaults(guidance_scale: float, temperature: float) -> dict[str, Any]:
    return {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": 900, "top_p": 0.97}


_PATCHIFIED = ("infinity_vae_d56_f8_14_patchify.pth",)

VARIANTS: dict[str, Variant] = {
    # The authors state no sampling settings for this one; those of the next size are taken.
    "125m": Variant(CONFIGS["125m"], ("infinity_125M_256x256.pth",), ("infinity_vae_d16.pth",), _defaults(3.0, 0.5)),
    "2b": Variant(
        CONFIGS["2b"],
        ("infinity_2b_reg.pth",),
        ("infinity_vae_d32reg.pth", "infinity_vae_d32_reg.pth"),
        _defaults(3.0, 0.5),
    ),
    "8b": Variant(CONFIGS["8b"], ("infinity_8b_weights",), _PATCHIFIED, _defaults(3.0, 1.0)),
    "8b-512": Variant(CONFIGS["8b-512"], ("infinity_8b_512x512_weights",), _PATCHIFIED, _defaults(3.0, 1.0)),
}
"""The released models. A name without an ending is a folder of shards."""

FAMILY = Family(
    name="infinity",
    repos=("FoundationVision/Infinity", "FoundationVision/infinity"),
    variants=VARIANTS,
    default="2b",
    config=InfinityConfig.from_dict,
    build=Infinity,
    parts={
        # Constants of the training and of the quantiser, which has no weights.
        "transformer": Part(
            ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"),
            tables=("cfg_uncond",),
        ),
        "tokenizer": Part(("quantizer.lfq.*", "quantize.lfq.*"), rename=plain_names),
    },
    inputs=lambda model, encoder: TextInputProcessor(encoder, model.config.text_channels),
    text_encoder=FLAN_T5_XL,
)
