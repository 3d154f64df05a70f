"""One guidance branch alone at the last scales."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from stepvar.errors import UsageError
from stepvar.methods.base import Method, ModelFacts
from stepvar.plan import Plan


@dataclass(frozen=True)
class DropGuidance(Method):
    """Runs one guidance branch alone at the last scales: half of their work, every token of them.

    Keeping the conditional branch is what SkipVAR (arXiv 2506.08908) does where its classifier says so, at fixed
    scales here. A generation without guidance has one branch and stays as it is.

    Attributes:
        last: how many scales, counted from the end of every clip; scales that are not run count too. Where a later
            clip with guidance attends to them, both branches run all the same.
    """

    name: ClassVar[str] = "drop-guidance"

    last: int = 1

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UsageError(f"last={self.last}: must be at least 1 (use 'dense' to drop nothing)")

    def edit(self, plan: Plan) -> Plan:
        scales = min(plan.schedule.scale_counts)
        if self.last >= scales:
            raise UsageError(f"last={self.last}: the schedule has {scales} scales; drop guidance at fewer")
        ranks = map(plan.schedule.rank, range(len(plan.schedule)))
        guidance = (1.0 if rank <= self.last else scale for rank, scale in zip(ranks, plan.guidance, strict=True))
        return replace(plan, guidance=tuple(guidance))

    def check(self, plan: Plan, facts: ModelFacts) -> None:
        if self.last <= plan.skipped:
            raise UsageError(
                f"last={self.last}: the last {plan.skipped} scales are not run, so no guidance is left to drop; "
                f"give at least {plan.skipped + 1}"
            )
