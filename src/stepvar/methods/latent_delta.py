"""Selection by what the last scale changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods.base import ModelInfo, RunBlocks
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.pruning import Pruning
from stepvar.methods.scores import squared_norm


@dataclass(frozen=True)
class LatentDelta(Pruning):
    """Keeps the tokens whose part of the picture changed most with the scale before.

    After LD-Pruning (Mei et al., arXiv 2606.00310), which scores regions by the change of the image latent from scale
    to scale. Our reading: a method sees no latent but the map that enters the blocks, which is made of the picture so
    far; the score is the squared distance between this map and the one that entered at the pass before, resampled to
    this grid (trilinear). Level and position embeddings that a family adds in front of the blocks are part of it.
    Counts follow from ``keep``, where the paper adapts them to the image; its skipping of the unconditional branch is
    ``drop-guidance``.
    """

    name: ClassVar[str] = "latent-delta"

    def check(self, plan: Plan, info: ModelInfo) -> None:
        super().check(plan, info)
        refuse_first_scale(self, plan)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        step.memo["before"], step.memo["entered"] = step.memo.get("entered"), CachedFeatures.of(tokens, step)
        return super().run_stack(run, tokens, step)

    def score(self, tokens: TokenMap, step: Step) -> Tensor:
        rows = len(tokens.features)
        entered: CachedFeatures = step.memo["entered"]
        before: CachedFeatures = step.memo["before"]
        return squared_norm(entered.values[:rows].float() - before.at(step, rows, "trilinear").float())


def refuse_first_scale(method: Pruning, plan: Plan) -> None:
    """For methods that select by what an earlier scale left.

    Raises:
        UsageError: if a clip's first scale is pruned.
    """
    seen: set[int] = set()
    for step in plan.steps(1):
        if step.computed and method.count_at(step) < step.grid.size and step.clip not in seen:
            raise UsageError(
                f"keep and last: {method.name} selects by the scale before, which the first scale ({step.grid}) has "
                f"not; prune at most the last {step.scales_from_end - 1} scales"
            )
        if step.computed:
            seen.add(step.clip)
