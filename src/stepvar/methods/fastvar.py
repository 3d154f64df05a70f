"""FastVAR: cached token pruning (Guo et al., ICCV 2025; arXiv 2503.23367)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap, scatter_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.registry import register
from stepvar.methods.scores import distance_to_mean, top_tokens

MOST_PRUNED = 0.75
"""For a speed-up another scale is skipped before more than this is pruned."""


@dataclass
class FastVARState(MethodState):
    """What FastVAR keeps during a generation.

    Attributes:
        cached: the update that each sub-layer made at the last unpruned scale.
    """

    cached: dict[SublayerRef, CachedFeatures] = field(default_factory=dict)


@register
@dataclass(frozen=True)
class FastVAR(Method[FastVARState]):
    """Per sub-layer keeps the tokens farthest from the mean; fills the others' updates from an earlier scale's.

    Each residual sub-layer of the pruned scales runs on its own selection; its update for the other tokens is the
    one that the same sub-layer made at the last unpruned scale, resized by area. The last scales are not run at all.
    Scales are counted from the end, so every aspect ratio, batch and guidance works. Released presets: ``infinity``
    (the default; of Infinity-2B at 1024x1024: 40 % pruned at 32x32 and 50 % at 40x40, scales 48 and 64 skipped) and
    ``hart`` (50 % pruned at 48x48 and 75 % at 64x64 in all blocks, nothing skipped). ``infinity-star`` is what a public
    reproduction of FastSTAR compares with on videos: the last four scales, 20, 30, 40 and 70 % pruned, in all but the
    first 4 and the last 5 of 36 blocks; the mean is that of the whole clip.

    Attributes:
        prune: share of tokens dropped at each pruned scale; the last entry is the last scale that is run.
        skip: how many scales at the end are not run.
        blocks_before: first blocks that always see all tokens.
        blocks_after: last blocks that always see all tokens. Where no block is left between them (the preset
            ``infinity`` on a model of up to seven), nothing is pruned and only skipping saves.
    """

    name: ClassVar[str] = "fastvar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "infinity": {"prune": (0.4, 0.5), "skip": 2, "blocks_before": 3, "blocks_after": 4},
        "hart": {"prune": (0.5, 0.75), "skip": 0, "blocks_before": 0, "blocks_after": 0},
        "infinity-star": {"prune": (0.2, 0.3, 0.4, 0.7), "skip": 0, "blocks_before": 4, "blocks_after": 5},
    }
    neutral: ClassVar[Mapping[str, Any] | None] = {"prune": (0.0,), "skip": 0}

    speedup_settings: ClassVar[tuple[str, ...]] = ("prune", "skip")

    prune: Annotated[Sequence[float], Range(least=0, below=1)] = (0.4, 0.5)
    skip: Annotated[int, Range(0, 1000)] = 2
    blocks_before: Annotated[int, Range(0, 1000)] = 3
    blocks_after: Annotated[int, Range(0, 1000)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prune:
            raise UsageError("prune=(): give one share per pruned scale, or use skip-last alone")

    def edit(self, settings: Settings) -> Settings:
        needed = self.skip + len(self.prune) + 1
        scales = min(settings.schedule.scale_counts)
        if scales < needed:
            raise UsageError(f"prune and skip: need {needed} scales, one of them unpruned; the schedule has {scales}")
        return settings.without_last(self.skip)

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """Two scales pruned alike, nothing skipped; then the same with one more scale skipped, and one more."""

        def stage(skip: int) -> Stage:
            return lambda share: replace(self, prune=(round(share * MOST_PRUNED, 4),) * 2, skip=skip)

        return [stage(skip) for skip in range(max(0, min(settings.schedule.scale_counts) - 3))]

    def count_at(self, step: Step) -> int:
        """Tokens kept at a scale."""
        place = self.skip + len(self.prune) - step.scales_from_end
        pruned = 0 <= place < len(self.prune)
        return step.grid.size - int(step.grid.size * self.prune[place]) if pruned else step.grid.size

    def is_cached(self, step: Step) -> bool:
        """Whether the updates of this scale fill those of the pruned ones: the last scale in front of them."""
        return step.scales_from_end == self.skip + len(self.prune) + 1

    def _inside(self, layer: int, depth: int) -> bool:
        return self.blocks_before <= layer < depth - self.blocks_after

    def acts_on_sublayers(self, step: Step) -> bool:
        return self.is_cached(step) or self.count_at(step) < step.grid.size

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.count_at(step) if self._inside(layer, depth) else step.grid.size

    def start(self, plan: Plan) -> FastVARState:
        return FastVARState()

    def run_sublayer(
        self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: FastVARState
    ) -> Tensor:
        if not self._inside(ref.layer, ref.depth):
            return run(tokens)
        if self.is_cached(step):
            update = run(tokens)
            state.cached[ref] = CachedFeatures.of(tokens.with_features(update), step)
            return update
        count = self.count_at(step)
        if count == step.grid.size:
            return run(tokens)
        kept = top_tokens(distance_to_mean(tokens.features), count)
        state.record(step, kept)
        update = run(tokens.take(kept))
        return scatter_tokens(state.cached[ref].at(step, len(update), "area"), kept, update)
