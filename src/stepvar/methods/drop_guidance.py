"""One guidance branch alone at the last scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from stepvar.core.plan import Plan, Settings
from stepvar.core.stack import ModelInfo
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, Stage
from stepvar.methods.registry import register

Branch = Literal["conditional", "unconditional"]


@register
@dataclass(frozen=True)
class DropGuidance(Method):
    """Runs one guidance branch alone at the last scales: half of their work, every token of them.

    Keeping the conditional branch is what :class:`~stepvar.methods.skipvar.SkipVAR` does where its classifier says so,
    here at fixed scales; FasterVAR (arXiv 2512.16483) keeps the unconditional one at the last three. A generation
    without guidance has one branch and stays as it is.

    Attributes:
        last: how many scales, counted from the end of every clip; scales that are not run count too. Where a later
            clip with guidance attends to them, both branches run all the same.
        branch: which one goes on; codes are sampled from it as it is.
    """

    name: ClassVar[str] = "drop-guidance"
    speedup_settings: ClassVar[tuple[str, ...]] = ("last",)

    last: Annotated[int, Range(1, 1000, note="use 'dense' to drop nothing")] = 1
    branch: Branch = "conditional"

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """One scale that is run to all but the first; nothing lies between."""
        first, most = 1 + settings.skipped, min(settings.schedule.scale_counts) - 1
        return [lambda share: replace(self, last=first + round(share * max(0, most - first)))]

    def edit(self, settings: Settings) -> Settings:
        schedule = settings.schedule
        scales = min(schedule.scale_counts)
        if self.last >= scales:
            raise UsageError(f"last={self.last}: the schedule has {scales} scales; drop guidance at fewer")
        if not settings.guided:
            return settings
        alone = 1.0 if self.branch == "conditional" else 0.0
        guidance = (
            alone if schedule.scales_from_end(index) <= self.last else scale
            for index, scale in enumerate(settings.guidance)
        )
        return replace(settings, guidance=tuple(guidance))

    def check(self, plan: Plan, info: ModelInfo) -> None:
        skipped = plan.settings.skipped
        if self.last <= skipped:
            raise UsageError(
                f"last={self.last}: the last {skipped} scales are not run, so no guidance is left to drop; "
                f"give at least {skipped + 1}"
            )
