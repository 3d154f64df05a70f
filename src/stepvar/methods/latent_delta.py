"""Selection by what the last scale changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.stack import ModelInfo, RunBlocks
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.pruning import Pruning, PruningState
from stepvar.methods.registry import register
from stepvar.methods.scores import squared_norm


@dataclass
class LatentDeltaState(PruningState):
    """What is kept of the maps that enter the blocks.

    Attributes:
        entered: the map of this pass.
        before: that of the pass before.
    """

    entered: CachedFeatures | None = None
    before: CachedFeatures | None = None


@register
@dataclass(frozen=True)
class LatentDelta(Pruning[LatentDeltaState]):
    """Keeps the tokens whose part of the image changed most with the scale before.

    After LD-Pruning (Mei et al., arXiv 2606.00310), which scores regions by the change of the image latent from scale
    to scale. Our reading: a method sees no latent but the map that enters the blocks, which is made of the accumulated
    latent; the score is the squared distance between this map and the one that entered at the pass before, resampled
    to this grid (trilinear). Level and position embeddings that a family adds in front of the blocks are part of it.
    Counts follow from ``keep``, where the paper adapts them to the image; its skipping of the unconditional branch is
    ``drop-guidance``.
    """

    name: ClassVar[str] = "latent-delta"

    def check(self, plan: Plan, info: ModelInfo) -> None:
        super().check(plan, info)
        refuse_first_scale(self, plan)

    def start(self, plan: Plan) -> LatentDeltaState:
        return LatentDeltaState(sources=self.sources(plan))

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: LatentDeltaState) -> TokenMap:
        state.before, state.entered = state.entered, CachedFeatures.of(tokens, step)
        return super().run_stack(run, tokens, step, state)

    def score(self, tokens: TokenMap, step: Step, state: LatentDeltaState) -> Tensor:
        rows = len(tokens.features)
        assert state.entered is not None and state.before is not None  # the first scale of a clip is refused
        return squared_norm(state.entered.values[:rows].float() - state.before.at(step, rows, "trilinear").float())


def refuse_first_scale(method: Pruning, plan: Plan) -> None:
    """For methods that select by what an earlier scale left.

    Raises:
        UsageError: if a clip's first scale is pruned.
    """
    seen: set[int] = set()
    for step in plan.computed:
        if method.count_at(step) < step.grid.size and step.clip not in seen:
            raise UsageError(
                f"keep and last: {method.name} selects by the scale before, which the first scale ({step.grid}) has "
                f"not; prune at most the last {step.scales_from_end - 1} scales"
            )
        seen.add(step.clip)
