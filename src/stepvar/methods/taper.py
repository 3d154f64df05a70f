"""A variant beside StepVAR: the same number of kept tokens, spread otherwise over the scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from stepvar.core.plan import Step
from stepvar.errors import UsageError
from stepvar.methods.structure_texture import StructureTexture


@dataclass(frozen=True)
class TaperedPruning(StructureTexture):
    """StepVAR's selection, but larger scales keep a smaller share, at the same number of tokens in all.

    A variant of this project, not of the paper. Of the ``last`` scales, one with n tokens keeps ``c * n ** (1 -
    taper)``, at most all; c is such that together they keep the share ``keep``. It follows from the schedule alone.

    Attributes:
        taper: 0 keeps the same share at each of these scales, 1 the same number of tokens.
    """

    name: ClassVar[str] = "taper"

    taper: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep, (int, float)):
            raise UsageError(f"keep={self.keep!r}: give one number; taper spreads it over the scales")
        if not 0 <= self.taper <= 1:
            raise UsageError(f"taper={self.taper}: must be between 0 (the same share) and 1 (the same number)")

    def ratio_at(self, step: Step) -> float:
        keep = super().ratio_at(step)
        schedule = step.plan.schedule
        last = self.last if self.last is not None else step.plan.late_scales()
        if keep == 1 or step.scales_from_end > last:
            return 1.0
        passes = [index for index in step.plan.passes if schedule.clip(index) == step.clip]
        sizes = [schedule[index].size for index in passes if schedule.scales_from_end(index) <= last]
        return min(1.0, factor(sizes, keep, self.taper) * step.grid.size**-self.taper)


def factor(sizes: Sequence[int], keep: float, taper: float) -> float:
    """The c for which ``sum(min(n, c * n ** (1 - taper)))`` is the share ``keep`` of the sum of all n."""
    left, rest = keep * sum(sizes), sorted(sizes)
    while rest:
        found = left / sum(n ** (1 - taper) for n in rest)
        if found <= rest[0] ** taper:  # the smallest saturates first
            return found
        left -= rest.pop(0)
    return float("inf")
