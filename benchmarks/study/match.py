"""Settings with which methods cost the same, by counted operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stepvar.core.plan import Settings
from stepvar.errors import UsageError
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline

STEPS, TOLERANCE = 8, 0.004
"""Of the search, by counted operations."""

SpeedupOf = Callable[[Method], float]


def counted_speedup(pipe: Pipeline, settings: Settings) -> SpeedupOf:
    """How many times fewer operations a method needs than dense, in the loop over scales of one image.

    Args:
        settings: of the generation, before the method edits them.
    """

    def count(method: Method) -> int:
        plan = method.plan(settings, pipe.model.info, 1)
        return sum(pipe.dry_run(plan, method).flops.values())

    dense = count(Dense())
    return lambda method: dense / count(method)


@dataclass(frozen=True)
class Matched:
    """A setting of a method that costs what was asked for, as nearly as it can.

    Attributes:
        method: with the setting.
        knob: the setting's value.
        speedup: the dense operations over the method's.
    """

    method: Method
    knob: float
    speedup: float


def match_cost(
    build: Callable[[float], Method],
    speedup_of: SpeedupOf,
    target: float,
    lowest: float = 0.02,
    highest: float = 1.0,
    tolerance: float = TOLERANCE,
) -> Matched:
    """Finds the knob with which a method is ``target`` times as cheap as dense.

    Costs are almost linear in a share of tokens, so the search goes on where the straight line between its two ends
    meets the target.

    Args:
        build: the method of a knob; a higher knob costs more (a share of tokens kept).
        speedup_of: counts a method.
        target: dense cost over the method's, above 1.
        lowest, highest: where the knob may lie; if the target lies outside, the nearer end is taken.
        tolerance: costs that differ by less than this share are equal.

    Raises:
        UsageError: for a target that is not above 1.
    """
    if not target > 1:
        raise UsageError(f"speed-up {target}: must be above 1")

    def at(knob: float) -> Matched:
        method = build(knob)
        return Matched(method, knob, speedup_of(method))

    low, high = at(lowest), at(highest)
    if not high.speedup < target < low.speedup:
        return low if target >= low.speedup else high
    best = min(low, high, key=lambda end: abs(end.speedup - target))
    for _ in range(STEPS):
        share = (1 / target - 1 / low.speedup) / (1 / high.speedup - 1 / low.speedup)
        middle = at(low.knob + share * (high.knob - low.knob))
        best = min(best, middle, key=lambda end: abs(end.speedup - target))
        if abs(best.speedup / target - 1) < tolerance:
            break
        low, high = (middle, high) if middle.speedup > target else (low, middle)
    return best
