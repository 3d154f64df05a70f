"""The released checkpoints of the InfinityStar family: files, names of weights, sampling settings."""

from __future__ import annotations

from typing import Any

from stepvar.models.family import Part, Variant
from stepvar.models.infinity_star.config import CONFIGS
from stepvar.models.infinity_star.tokenizer import IGNORABLE as TOKENIZER_IGNORABLE

REPOS = ("FoundationVision/InfinityStar", "FoundationVision/infinitystar")
"""The repository on the hub, and another spelling."""

PARTS: dict[str, Part] = {
    # The start token is in the files, and nothing reads it.
    "transformer": Part(("sos_token",), tables=("cfg_uncond",)),
    "tokenizer": Part(TOKENIZER_IGNORABLE),
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
