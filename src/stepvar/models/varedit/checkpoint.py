"""The released checkpoints of the VAREdit family: files, names of weights, sampling settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stepvar.models.family import Family, Variant
from stepvar.models.infinity.checkpoint import FAMILY as INFINITY
from stepvar.models.infinity.config import InfinityConfig
from stepvar.models.varedit.inputs import EditInputProcessor
from stepvar.models.varedit.model import VAREdit

DEFAULTS: dict[str, Any] = {"guidance_scale": 3.0, "temperature": 0.1, "top_k": 900, "top_p": 0.97}
"""Of the published examples."""


def _edits(infinity: str, resolution: str, transformer: str) -> Variant:
    """An Infinity model of the same shapes, with other weights: the tokenizer is the same file."""
    original = INFINITY.variants[infinity]
    config = replace(original.config, resolution=resolution)
    return Variant(config, (transformer,), original.tokenizer, DEFAULTS)


VARIANTS: dict[str, Variant] = {
    "8b-512": _edits("8b", "0.25M", "8B-512.pth"),
    "8b-1024": _edits("8b", "1M", "8B-1024.pth"),
    # Named in the published demo, and not in the authors' list of released files.
    "2b-512": _edits("2b", "0.25M", "2B-512.pth"),
}
"""The released models."""

FAMILY = Family(
    name="varedit",
    repos=("HiDream-ai/VAREdit",),
    variants=VARIANTS,
    default="8b-1024",
    config=InfinityConfig.from_dict,
    build=VAREdit,
    parts=INFINITY.parts,
    inputs=lambda model, encoder: EditInputProcessor(encoder, model),
    text_encoder=INFINITY.text_encoder,
    edits=True,
)
