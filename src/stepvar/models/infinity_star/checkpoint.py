"""The released checkpoints of the InfinityStar family: files, names of weights, sampling settings."""

from __future__ import annotations

from typing import Any

from stepvar.models.family import Family, Part, Variant
from stepvar.models.infinity_star.config import CONFIGS, InfinityStarConfig
from stepvar.models.infinity_star.inputs import VideoInputProcessor
from stepvar.models.infinity_star.model import InfinityStar
from stepvar.text.t5 import FLAN_T5_XL

PARTS: dict[str, Part] = {
    # The start token is in the files, and nothing reads it.
    "transformer": Part(("sos_token",), tables=("cfg_uncond",)),
    # Layers that nothing runs, and constants of the quantiser.
    "tokenizer": Part(("proj_down_two.*", "proj_up_two.*", "quantizer.lfq_*", "quantize.lfq_*")),
}

_TOKENIZER = ("infinitystar_videovae.pth",)
_COMMON: dict[str, Any] = {"top_k": 0, "top_p": 0.0, "aspect_ratio": "16:9"}
_APG: dict[str, Any] = {"guidance_scale": 34.0, "guidance_type": "apg", "temperature": {"clips": [1.0, 0.4]}}
_CFG: dict[str, Any] = {"guidance_scale": 3.0, "guidance_type": "cfg", "temperature": 0.5}

VARIANTS: dict[str, Variant] = {
    "480p": Variant(CONFIGS["480p"], ("infinitystar_8b_480p_weights",), _TOKENIZER, _COMMON | _APG),
    "720p": Variant(CONFIGS["720p"], ("infinitystar_8b_720p_weights",), _TOKENIZER, _COMMON | _APG),
    "interact": Variant(CONFIGS["interact"], ("InfinityStarInteract_24K_iters",), _TOKENIZER, _COMMON | _CFG),
}
"""The released models. A name without an ending is a folder of shards."""

FAMILY = Family(
    name="infinity_star",
    repos=("FoundationVision/InfinityStar", "FoundationVision/infinitystar"),
    variants=VARIANTS,
    default="480p",
    config=InfinityStarConfig.from_dict,
    build=InfinityStar,
    parts=PARTS,
    inputs=lambda model, encoder: VideoInputProcessor(encoder, model),
    text_encoder=FLAN_T5_XL,
    video=True,
)
