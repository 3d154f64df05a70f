"""What a generation will compute, scale by scale, before it starts: counted from shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepvar.core.plan import Plan, Step
from stepvar.methods.base import Method
from stepvar.models.blocks import planned_works
from stepvar.models.work import ScaleWork


@dataclass(frozen=True)
class ScaleForecast:
    """All passes of one scale of one clip.

    Attributes:
        clip, scale: which, from 0.
        grid: (t, h, w).
        passes: how often the scale runs through the blocks.
        kept: fewest tokens that a block sees, in one pass.
        branches: most guidance branches of a pass.
        flops: floating-point operations of all passes, as a report will count them.
    """

    clip: int
    scale: int
    grid: tuple[int, int, int]
    passes: int
    kept: int
    branches: int
    flops: int

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        t, h, w = self.grid
        return t * h * w


def forecast(model: Any, plan: Plan, method: Method, samples: int = 1, text: int = 0) -> list[ScaleForecast]:
    """The scales of a generation that go through the blocks, in order.

    Args:
        model: of any family; its weights are not needed.
        plan: as given to the generation, before the method edits it.
        text: tokens of the prompt.
    """
    by_scale: dict[tuple[int, int], list[tuple[Step, ScaleWork]]] = {}
    for step, work in planned_works(model, method.edit(plan), method, samples, text):
        by_scale.setdefault((step.clip, step.scale), []).append((step, work))
    return [_of_scale(works, method, model.config.depth) for works in by_scale.values()]


def _of_scale(works: Sequence[tuple[Step, ScaleWork]], method: Method, depth: int) -> ScaleForecast:
    steps = [step for step, _ in works]
    first = steps[0]
    return ScaleForecast(
        clip=first.clip,
        scale=first.scale,
        grid=first.grid.shape,
        passes=len(works),
        kept=min(method.tokens_at(step, layer, depth) for step in steps for layer in range(depth)),
        branches=max(step.branches for step in steps),
        flops=sum(work.flops for _, work in works),
    )
