"""The published scale schedules of the Infinity family."""

from __future__ import annotations

import warnings
from dataclasses import replace

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import ExperimentalWarning, UsageError

RESOLUTIONS: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Number of scales by resolution name: each schedule is a prefix of the 1M one of its aspect ratio."""

EXPERIMENTAL = ("2K",)
"""Resolutions that no published model was trained for, see :func:`stretched`."""

_TALL = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}


def _sides(row: str) -> tuple[tuple[int, int], ...]:
    pairs = (pair.split("x") for pair in row.split())
    return tuple((int(h), int(w)) for h, w in pairs)


def _all_ratios() -> dict[float, tuple[tuple[int, int], ...]]:
    ratios = {ratio: _sides(row) for ratio, row in _TALL.items()}
    for ratio, sides in list(ratios.items())[1:]:
        ratios[int(1000 / ratio) / 1000] = tuple((w, h) for h, w in sides)
    return ratios


RATIOS = _all_ratios()
"""Height over width -> the 13 (h, w) grids of the 1M schedule."""


def stretched(sides: tuple[tuple[int, int], ...], factor: float = 2.0) -> tuple[tuple[int, int], ...]:
    """A 1M schedule made larger: side ``x`` of scale ``s`` of ``S`` becomes ``round(x * factor ** (s / (S - 1)))``.

    The number of scales stays, so every level embedding is a trained one; coarse scales, which fix the layout, stay
    as they are, and the stretch grows evenly (by the same ratio from scale to scale) up to the last. Rounding is half
    to even.
    """
    last = len(sides) - 1
    return tuple((round(h * factor ** (s / last)), round(w * factor ** (s / last))) for s, (h, w) in enumerate(sides))


def schedule_for(resolution: str, height_over_width: float) -> ScaleSchedule:
    """The schedule of the published aspect ratio that is nearest to the one asked for; the first of equally near ones.

    The result says which ratio that is. "2K" is experimental: twice the sides of 1M (2048x2048 for a square), with a
    table that no one published (see :func:`stretched`) and positions in the frame of the 1M schedule.

    Raises:
        UsageError: for an unknown resolution or a ratio that is not a positive number.
    """
    if resolution not in (*RESOLUTIONS, *EXPERIMENTAL):
        experimental = ", ".join(f"{name} (experimental)" for name in EXPERIMENTAL)
        raise UsageError(f"resolution {resolution!r}: choose one of {', '.join(RESOLUTIONS)}, {experimental}")
    if not 0 < height_over_width < float("inf"):
        raise UsageError(f"aspect ratio (height / width) {height_over_width}: must be a positive number")
    ratio = min(RATIOS, key=lambda known: abs(known - height_over_width))
    sides, frame = RATIOS[ratio], Grid(1, *RATIOS[ratio][-1])
    if resolution in EXPERIMENTAL:
        message = f"resolution {resolution!r}: no published model was trained for it, and its scales are our own guess"
        warnings.warn(message, ExperimentalWarning, stacklevel=2)
        sides = stretched(sides)
    else:
        sides = sides[: RESOLUTIONS[resolution]]
    schedule = ScaleSchedule.of(sides, name=f"{resolution} {ratio:g}", frame=frame)
    return replace(schedule, ratio=ratio, asked=height_over_width)
