"""The model families: one row each."""

from __future__ import annotations

from stepvar.core.guidance import hold_last, relative_scales
from stepvar.errors import UsageError
from stepvar.models.family import Family
from stepvar.models.hart import HART, HARTConfig
from stepvar.models.hart import checkpoint as hart
from stepvar.models.hart.inputs import ContextInputProcessor
from stepvar.models.infinity import Infinity, InfinityConfig
from stepvar.models.infinity import checkpoint as infinity
from stepvar.models.infinity.inputs import TextInputProcessor
from stepvar.models.infinity_star import InfinityStar, InfinityStarConfig
from stepvar.models.infinity_star import checkpoint as infinity_star
from stepvar.models.infinity_star.inputs import VideoInputProcessor
from stepvar.models.var import VAR, VARConfig
from stepvar.models.var import checkpoint as var
from stepvar.models.var.inputs import ClassInputProcessor
from stepvar.text import Qwen2Encoder
from stepvar.text.t5 import FLAN_T5_XL

_ROWS = (
    Family(
        name="infinity",
        repos=infinity.REPOS,
        variants=infinity.VARIANTS,
        default="2b",
        config=InfinityConfig.from_dict,
        build=Infinity,
        parts=infinity.PARTS,
        inputs=lambda model, encoder: TextInputProcessor(encoder, model.config.text_channels),
        text_encoder=FLAN_T5_XL,
    ),
    Family(
        name="infinity_star",
        repos=infinity_star.REPOS,
        variants=infinity_star.VARIANTS,
        default="480p",
        config=InfinityStarConfig.from_dict,
        build=InfinityStar,
        parts=infinity_star.PARTS,
        inputs=lambda model, encoder: VideoInputProcessor(encoder, model),
        text_encoder=FLAN_T5_XL,
        video=True,
    ),
    Family(
        name="var",
        repos=var.REPOS,
        variants=var.VARIANTS,
        default="d16",
        config=VARConfig.from_dict,
        build=VAR,
        parts=var.PARTS,
        inputs=lambda model, _: ClassInputProcessor(model.config.classes),
        guidance_schedule="linear",
    ),
    Family(
        name="hart",
        repos=hart.REPOS,
        variants=hart.VARIANTS,
        default="0.7b",
        config=HARTConfig.from_dict,
        build=HART,
        parts=hart.PARTS,
        inputs=lambda model, encoder: ContextInputProcessor(encoder, model.config),
        text_encoder=hart.QWEN2,
        encoder=lambda source, config: Qwen2Encoder(source, slots=config.context_tokens),
        released_config=hart.read_released,
        relative_scales=lambda count: hold_last(relative_scales(count)),
        guidance_schedule="linear-hold",
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
"""The families by name."""


def family_of_repo(name: str) -> Family | None:
    """The family whose repository on the hub has this name; its case does not matter."""
    for family in FAMILIES.values():
        if name.casefold() in map(str.casefold, family.repos):
            return family
    return None


def family_of_model(model: object) -> Family:
    """The family of a model.

    Raises:
        UsageError: if it is of none.
    """
    for family in FAMILIES.values():
        if isinstance(model, family.build):
            return family
    raise UsageError(f"model of type {type(model).__name__}: is of no family; known are {', '.join(FAMILIES)}")


def family_of_config(config: object) -> Family:
    """The family of a configuration.

    Raises:
        UsageError: if it is of none.
    """
    for family in FAMILIES.values():
        if any(isinstance(config, type(variant.config)) for variant in family.variants.values()):
            return family
    raise UsageError(f"config of type {type(config).__name__}: is of no family; known are {', '.join(FAMILIES)}")


def families_of_variant(variant: str) -> list[Family]:
    """The families that have a released model of this name."""
    return [family for family in FAMILIES.values() if variant in family.variants]
