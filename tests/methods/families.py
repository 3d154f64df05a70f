"""A tiny model of every family, for the tests that hold for all methods. A new family is one more row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.models.infinity import TextCondition
from stepvar.models.infinity_star.model import VideoCondition
from stepvar.models.infinity_star.schedules import clip_schedule
from stepvar.models.switti import PooledCondition
from stepvar.models.var import ClassCondition
from stepvar.models.varedit import EditCondition
from stepvar.text import ContextFeatures
from tests.helpers import (
    CLIPS,
    SQUARE,
    TINY_HART,
    TINY_SWITTI,
    WIDE,
    make_context,
    make_edit,
    make_hart,
    make_model,
    make_pooled_condition,
    make_source,
    make_star,
    make_star_t2i,
    make_star_text,
    make_switti,
    make_text,
    make_var,
)

LENGTHS = (5, 3)
"""Text tokens of the images of a batch."""


@dataclass(frozen=True)
class FamilyRow:
    """One family on one schedule.

    Attributes:
        family: its name in the registry.
        schedule: what is generated; t > 1 for a family that draws videos, not square for one that draws other shapes.
        model: makes the model.
        condition: from the places of the images in the batch to what they show; the same image for the same place.
        first_tokens: tokens that the first pass runs beside those of its grid.
        keys_in_front: keys in front of those of the passes, in all blocks but the first.
    """

    family: str
    shape: str
    schedule: ScaleSchedule
    model: Callable[[], Any]
    condition: Callable[[range], Any]
    first_tokens: int = 0
    keys_in_front: int = 0

    def __str__(self) -> str:
        return f"{self.family}-{self.shape}"


def texts(places: range) -> Any:
    return make_text([LENGTHS[place] for place in places], places.start)


def contexts(places: range) -> ContextFeatures:
    return make_context([LENGTHS[place] for place in places], places.start)


def edits(schedule: ScaleSchedule) -> Callable[[range], EditCondition]:
    return lambda places: EditCondition(texts(places), None, make_source(schedule, len(places), places.start))


def pooled(places: range) -> PooledCondition:
    return make_pooled_condition([LENGTHS[place] for place in places], places.start)


def image_and_clip(*sides: tuple[int, int]) -> ScaleSchedule:
    """A still image and a clip of two latent frames, whose first scale is repeated."""
    grids = [[(Grid(t, h, w), 1 + (scale == 0)) for scale, (h, w) in enumerate(sides)] for t in (1, 2)]
    return clip_schedule(grids, "clips")


ROWS = (
    FamilyRow("infinity", "square", SQUARE, cache(make_model), lambda places: TextCondition(texts(places))),
    FamilyRow("infinity", "wide", WIDE, cache(make_model), lambda places: TextCondition(texts(places))),
    FamilyRow("varedit", "wide", WIDE, cache(make_edit), edits(WIDE), keys_in_front=WIDE[-1].size),
    FamilyRow("var", "square", SQUARE, cache(make_var), lambda places: ClassCondition(tuple(3 + i for i in places))),
    FamilyRow("hart", "square", SQUARE, cache(make_hart), contexts, first_tokens=TINY_HART.prefix),
    FamilyRow(
        "hart",
        "wide",
        ScaleSchedule.of([(1, 1), (2, 2), (3, 4), (4, 6), (6, 9)]),
        cache(make_hart),
        contexts,
        first_tokens=TINY_HART.prefix,
    ),
    FamilyRow(
        "star",
        "square",
        SQUARE,
        cache(make_star_t2i),
        lambda places: make_star_text([LENGTHS[place] for place in places], places.start),
    ),
    FamilyRow("switti", "square", TINY_SWITTI.schedule, cache(make_switti), pooled),
    FamilyRow("infinity-star", "video-wide", CLIPS, cache(make_star), lambda places: VideoCondition(texts(places))),
    FamilyRow(
        "infinity-star",
        "video-square",
        image_and_clip((2, 2), (3, 3), (5, 5)),
        cache(make_star),
        lambda places: VideoCondition(texts(places)),
    ),
)
