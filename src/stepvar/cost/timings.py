"""How long the passes of generations took, and how long those of others would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from stepvar.core.plan import Plan, Step
from stepvar.core.report import Report

NEAR = 0.05
"""A generation is known whose passes lie this near to measured ones, as a share of its time."""


@dataclass
class Timings:
    """What was measured of the generations of one method with different settings, dense ones among them.

    Attributes:
        passes: seconds of each pass by how many tokens it ran, over all rows and blocks: the shortest time of several.
        stages: seconds of what no method changes: text, preparation, decoding.
    """

    passes: dict[int, dict[int, float]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)

    def add(self, plan: Plan, report: Report) -> None:
        """Takes the times of a generation."""
        for scale in report.scales:
            measured = self.passes.setdefault(scale.index, {})
            tokens = tokens_run(plan.step(scale.index))
            measured[tokens] = min(scale.seconds, measured.get(tokens, scale.seconds))
        for name, seconds in report.stages.items():
            self.stages[name] = min(seconds, self.stages.get(name, seconds))

    def seconds(self, plan: Plan) -> float:
        """Time of the loop over the passes of a plan."""
        return sum(self.pass_seconds(step.index, tokens_run(step)) for step in plan.steps)

    def pass_seconds(self, index: int, tokens: int) -> float:
        """Time of a pass: linear between the numbers of tokens that were measured, and never less for more tokens."""
        low, high, place = self._between(index, tokens)
        return low + place * (high - low)

    def is_known(self, plan: Plan) -> bool:
        """Whether a plan is so near to measured ones that measuring it would tell little."""
        if any(step.index not in self.passes for step in plan.steps):
            return False
        unknown = 0.0
        for step in plan.steps:
            low, high, place = self._between(step.index, tokens_run(step))
            unknown += min(place, 1 - place) * (high - low)
        return unknown <= NEAR * self.seconds(plan)

    def _between(self, index: int, tokens: int) -> tuple[float, float, float]:
        """The measured times around a number of tokens, and where between them it lies, from 0 to 1."""
        measured = self.passes[index]
        counts = sorted(measured)
        times = list(accumulate((measured[count] for count in counts), max))
        if tokens in measured:
            exact = times[counts.index(tokens)]
            return exact, exact, 0.0
        if counts[0] > 0:
            counts, times = [0, *counts], [0.0, *times]
        if tokens > counts[-1]:
            counts, times = [*counts, tokens], [*times, times[-1] * tokens / max(counts[-1], 1)]
        for (fewer, low), (more, high) in pairwise(zip(counts, times, strict=True)):
            if fewer <= tokens <= more:
                return low, high, (tokens - fewer) / (more - fewer)
        raise AssertionError("a number of tokens lies between 0 and the most that were measured, or beyond")

    def to_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "stages": self.stages}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timings:
        """Reads what :meth:`to_dict` wrote, from JSON.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: if it is something else.
        """
        passes = {
            int(index): {int(tokens): float(seconds) for tokens, seconds in measured.items()}
            for index, measured in values["passes"].items()
        }
        stages = {str(name): float(seconds) for name, seconds in values["stages"].items()}
        times = [seconds for measured in passes.values() for seconds in measured.values()]
        if not times or min(*times, *stages.values()) < 0 or not all(passes.values()):
            raise ValueError("times must be given, and not below 0")
        return cls(passes, stages)


def tokens_run(step: Step) -> int:
    """How many tokens run through blocks at a pass, over all rows and blocks."""
    return step.rows * sum(step.tokens) if step.computed else 0
