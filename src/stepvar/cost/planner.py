"""From a speed-up that is asked for to the settings of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, log
from typing import Any, Protocol

from stepvar.core.plan import Plan
from stepvar.cost.costs import Scope
from stepvar.errors import UsageError
from stepvar.methods.base import Method, Stage

NEAR = 0.05
"""A plan this far from what was asked, as a share, is said to be only near it."""


class Costs(Protocol):
    """What the planner asks of a cost model."""

    @property
    def plan(self) -> Plan: ...

    @property
    def scope(self) -> Scope: ...

    def speedup(self, method: Method) -> float: ...


@dataclass(frozen=True)
class Budget:
    """A method that meets a speed-up, as far as can be told before it runs.

    Attributes:
        method: with its settings.
        asked: the speed-up.
        planned: what the cost model expects of the method.
        scope: what it is of: a whole ``"image"``, from prompt to pixels, or the loop over ``"scales"``.
    """

    method: Method
    asked: float
    planned: float
    scope: Scope = "image"

    @property
    def is_near_only(self) -> bool:
        """Whether the method can do no better than come near: one whose settings are whole scales."""
        return abs(self.planned / self.asked - 1) > NEAR

    def to_dict(self) -> dict[str, Any]:
        asked = {"asked_speedup": self.asked, "planned_speedup": self.planned, "speedup_of": self.scope}
        return asked | {"settings": self.method.settings()}

    def __str__(self) -> str:
        near = "; the nearest that it can do" if self.is_near_only else ""
        return f"{self.asked:g} times as fast asked of the {self.scope}, {self.planned:.2f} planned{near}"


def fit(asked: float, method: Method, costs: Costs) -> Budget:
    """Searches the method's stages, the gentlest first, for the speed-up.

    Raises:
        UsageError: if no setting of the method reaches it; the error names the largest speed-up that can be had.
    """
    stages = list(method.stages(costs.plan))
    if not stages:
        raise UsageError(f"speedup={asked:g}: method {str(method)!r} has nothing to spare; choose another")
    reach = max(costs.speedup(stages[-1](1.0)), *(costs.speedup(stage(1.0)) for stage in stages))
    most = int(100 * reach) / 100  # never more than can be asked for
    if not isfinite(asked) or asked < 1:
        raise UsageError(f"speedup={asked:g}: must be at least 1, and with {method} here at most {most:.2f}")
    candidates: list[Method] = []
    for stage in stages:
        candidates += _around(asked, stage, costs.speedup)
        if costs.speedup(candidates[-1]) >= asked:
            break
    best = min(candidates, key=lambda candidate: _distance(costs.speedup(candidate), asked))
    planned = costs.speedup(best)
    stays = "early scales, text and decoding" if costs.scope == "image" else "early scales"
    if asked > reach and _distance(planned, asked) > log(1.001):
        raise UsageError(
            f"speedup={asked:g}: with {method} at most {most:.2f} can be had here, "
            f"since {stays} stay; ask for less, or choose another method"
        )
    return Budget(best, asked, planned, costs.scope)


def _distance(speedup: float, asked: float) -> float:
    return abs(log(speedup / asked))


def _around(asked: float, stage: Stage, speedup: Callable[[Method], float]) -> list[Method]:
    """The methods of a stage just below and just above a speed-up; the last one is the faster."""
    low, high = 0.0, 1.0
    if speedup(stage(1.0)) < asked:
        return [stage(1.0)]
    if speedup(stage(0.0)) >= asked:
        return [stage(0.0)]
    for _ in range(14):
        middle = (low + high) / 2
        if speedup(stage(middle)) < asked:
            low = middle
        else:
            high = middle
    return [stage(low), stage(high)]
