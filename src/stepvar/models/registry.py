"""The model families by name."""

from __future__ import annotations

from stepvar.errors import UsageError
from stepvar.models.family import Family
from stepvar.models.hart.checkpoint import FAMILY as HART
from stepvar.models.infinity.checkpoint import FAMILY as INFINITY
from stepvar.models.infinity_star.checkpoint import FAMILY as INFINITY_STAR
from stepvar.models.star.checkpoint import FAMILY as STAR
from stepvar.models.switti.checkpoint import FAMILY as SWITTI
from stepvar.models.var.checkpoint import FAMILY as VAR
from stepvar.models.varedit.checkpoint import FAMILY as VAREDIT

FAMILIES: dict[str, Family] = {
    family.name: family for family in (INFINITY, INFINITY_STAR, VAR, HART, STAR, SWITTI, VAREDIT)
}


def release_of_repo(name: str) -> tuple[Family, str] | None:
    """The family, and the variant that the name of a repository on the hub stands for; its case does not matter."""
    wanted = name.casefold()
    for family in FAMILIES.values():
        if wanted in map(str.casefold, family.repos):
            return family, family.default
        for variant, released in family.variants.items():
            if "transformer" in released.repos and wanted == released.repos["transformer"].casefold():
                return family, variant
    return None


def family_of_model(model: object) -> Family:
    """The family of a model, where one is made from another the narrower of both.

    Raises:
        UsageError: if it is of none.
    """
    found = [family for family in FAMILIES.values() if isinstance(model, family.build)]
    if not found:
        raise UsageError(f"model of type {type(model).__name__}: is of no family; known are {', '.join(FAMILIES)}")
    return max(found, key=lambda family: len(family.build.__mro__))


def releases_named(name: str) -> list[tuple[Family, str]]:
    """The released models of a name, each with its family and variant.

    Args:
        name: of a variant, which several families may have, or with its family: ``"varedit-8b-512"``.
    """
    return [
        (family, variant)
        for family in FAMILIES.values()
        for variant in family.variants
        if name in (variant, f"{family.name}-{variant}")
    ]
