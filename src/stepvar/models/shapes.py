"""Which shapes a model generates, and whether what was asked for is near one of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable
from typing import Any

from stepvar.core.tokens import ScaleSchedule
from stepvar.core.values import Range, shown, whole_number
from stepvar.errors import ExperimentalWarning, UsageError

FARTHEST = 1.2
"""An aspect ratio this many times another one is too far from it to be taken for it."""

NAMED = 6
"""Sizes that an error names where none is the one asked for."""

SIDE = Range(1, 2**16)


def check_ratio(model: Any, schedule: ScaleSchedule, asked: Any) -> None:
    """Refuses a published aspect ratio that is the nearest to what was asked for, and still far from it.

    Args:
        asked: what the caller wrote, for the error; the schedule knows the number.

    Raises:
        UsageError: naming the ratios of the model.
    """
    near, wanted = schedule.ratio, schedule.asked
    if near is None or wanted is None or max(near / wanted, wanted / near) <= FARTHEST:
        return
    known = sorted({round(1 / ratio, 3) for _, ratio, _ in model.shapes()})
    raise UsageError(
        f"aspect_ratio={shown(asked)}: far from all that this model generates; the nearest is {1 / near:.3g} "
        f"(width to height); it has {', '.join(f'{one:g}' for one in known)}"
    )


def warn_if_larger(schedule: ScaleSchedule, own: ScaleSchedule) -> None:
    """Warns of a resolution above the one that a model was made for.

    Args:
        own: the schedule of the same shape in the model's own resolution.
    """
    name = schedule.name.split()[0]
    if schedule[-1].size > own[-1].size and name != "2K":  # which warns for itself
        message = f"resolution {name!r}: this model was made for {own.name.split()[0]}; larger images fall apart"
        warnings.warn(message, ExperimentalWarning, stacklevel=6)


def shape_of_size(model: Any, height: Any, width: Any) -> tuple[float, str | None]:
    """The aspect ratio (width over height) and the resolution whose images have a size in pixels.

    Raises:
        UsageError: if there is none, naming those that are near.
    """
    if height is None or width is None:
        raise UsageError(f"height={shown(height)}, width={shown(width)}: give both, or aspect_ratio and resolution")
    wanted = whole_number("height", height, SIDE), whole_number("width", width, SIDE)
    sizes = sizes_of(model)
    if wanted in sizes:
        return sizes[wanted]
    raise UsageError(
        f"height={wanted[0]}, width={wanted[1]}: no schedule of this model has this size; {other_sizes(sizes, wanted)}"
    )


def sizes_of(model: Any) -> dict[tuple[int, int], tuple[float, str | None]]:
    """Aspect ratio and resolution of all images that a model generates, by height and width in pixels."""
    found: dict[tuple[int, int], tuple[float, str | None]] = {}
    for name, ratio, grid in model.shapes():
        found.setdefault((grid.h * model.config.stride, grid.w * model.config.stride), (1 / ratio, name))
    return found


def other_sizes(sizes: Collection[tuple[int, int]], wanted: tuple[int, int], width_first: bool = False) -> str:
    """The end of an error: which sizes there are instead of the one asked for, all as (height, width)."""
    near = nearest_sizes(sizes, wanted)
    named = ", ".join(f"{w}x{h}" if width_first else f"{h}x{w}" for h, w in near)
    order = "width x height" if width_first else "height x width"
    return f"{'the nearest are' if len(near) < len(sizes) else 'it has'} {named} ({order})"


def nearest_sizes(sizes: Iterable[tuple[int, int]], wanted: tuple[int, int]) -> list[tuple[int, int]]:
    """Those to name where none is the one asked for; factors count, so that a square is near to squares."""

    def distance(size: tuple[int, int]) -> float:
        return sum(math.log(one / max(asked, 1)) ** 2 for one, asked in zip(size, wanted, strict=True))

    return sorted(sizes, key=distance)[:NAMED]
