"""The model families by name."""

from __future__ import annotations

from stepvar.errors import UsageError
from stepvar.models.family import Family
from stepvar.models.hart.checkpoint import FAMILY as HART
from stepvar.models.infinity.checkpoint import FAMILY as INFINITY
from stepvar.models.infinity_star.checkpoint import FAMILY as INFINITY_STAR
from stepvar.models.star.checkpoint import FAMILY as STAR
from stepvar.models.var.checkpoint import FAMILY as VAR
from stepvar.models.varedit.checkpoint import FAMILY as VAREDIT

FAMILIES: dict[str, Family] = {family.name: family for family in (INFINITY, INFINITY_STAR, VAR, HART, STAR, VAREDIT)}


def family_of_repo(name: str) -> Family | None:
    """The family whose repository on the hub has this name; its case does not matter."""
    for family in FAMILIES.values():
        if name.casefold() in map(str.casefold, family.repos):
            return family
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
