"""The model families by name."""

from __future__ import annotations

from stepvar.errors import UsageError
from stepvar.models.family import Family
from stepvar.models.hart.checkpoint import FAMILY as HART
from stepvar.models.infinity.checkpoint import FAMILY as INFINITY
from stepvar.models.infinity_star.checkpoint import FAMILY as INFINITY_STAR
from stepvar.models.switti.checkpoint import FAMILY as SWITTI
from stepvar.models.var.checkpoint import FAMILY as VAR

FAMILIES: dict[str, Family] = {family.name: family for family in (INFINITY, INFINITY_STAR, VAR, HART, SWITTI)}


def release_of_repo(name: str) -> tuple[Family, str] | None:
    """The family, and the variant that the name of a repository on the hub stands for; its case does not matter."""
    wanted = name.casefold()
    for family in FAMILIES.values():
        if wanted in map(str.casefold, family.repos):
            return family, family.default
        for variant, released in family.variants.items():
            if wanted == released.repos.get("transformer", "").casefold():
                return family, variant
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


def families_of_variant(variant: str) -> list[Family]:
    """The families that have a released model of this name."""
    return [family for family in FAMILIES.values() if variant in family.variants]
