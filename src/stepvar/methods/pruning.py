"""Pruning by a score: what StepVAR and the selections that it is compared with have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import TypeVar

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import ModelInfo, RunBlocks, Sublayer, SublayerRef
from stepvar.core.tokens import Grid, Selection, TokenMap, gather_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.restoration import RESTORATIONS, Restoration, RestorationName
from stepvar.methods.scores import checked_scores, top_tokens

Scope = Literal["stack", "block", "sublayer"]
Propagated = Literal["state", "update"]
Branches = Literal["shared", "separate"]
Selected = Literal["clip", "frame"]
ContextClips = Literal["dense", "pruned"]

Share = Annotated[float | Sequence[float], Range(above=0, most=1, note="1 keeps every token")]
Scales = Annotated[int | None, Range(1, 1000, none="to choose by the schedule")]
Taper = Annotated[float, Range(0, 1, note="0: the same share, 1: the same number")]
Blocks = Annotated[int, Range(0, 1000)]

FLOOR = 0.25
"""A speed-up is sought at earlier scales before less than this is kept: pruning more is said to show (StepVAR)."""
LOWEST = 0.05
"""The smallest share that is kept for a speed-up."""
LATE = 0.95
"""Share of all tokens in the scales that may be pruned for a speed-up; the early ones fix the layout."""


@dataclass
class PruningState(MethodState):
    """What pruning keeps during a generation.

    Attributes:
        sources: the passes whose features restore those of later ones.
        cached: what the last of these left, by the first block of a span or by sub-layer.
    """

    sources: frozenset[int] = frozenset()
    cached: dict[int | SublayerRef, CachedFeatures] = field(default_factory=dict)


State = TypeVar("State", bound=PruningState, default=Any)


@dataclass(frozen=True)
class Pruning(Method[State], ABC):
    """At late scales, runs the blocks on the highest-scoring tokens and rebuilds the dense map behind them.

    A subclass says how tokens score; how the others are restored is a setting. Every selection goes with every
    restoration, so an ablation is a product and not a list.

    Attributes:
        keep: share of tokens kept, in (0, 1]. One number holds for the last ``last`` scales; a sequence gives one
            number per scale, the last entry for the last scale (``keep=(0.7, 0.4)``). At least one token is kept;
            1 is exactly dense.
        last: how many scales from the end of the schedule a single ``keep`` prunes; None: the fewest that hold more
            than half of the tokens that are run.
        taper: larger scales keep a smaller share, at the same number of tokens in all: of the ``last`` scales, one
            with n tokens keeps ``c * n ** (1 - taper)``, at most all, with c such that together they keep the share
            ``keep``. 0 keeps the same share at each of them, 1 the same number of tokens.
        blocks_before: blocks in front of the pruned span that see all tokens.
        blocks_after: blocks behind the pruned span that see all tokens.
        scope: select once for the whole span (``"stack"``), or again for each of its blocks (``"block"``) or of their
            residual sub-layers (``"sublayer"``).
        propagate: what a pruned token takes from the kept one that stands in for it, its ``"state"`` or its
            ``"update"``, the difference that the blocks made.
        restore: where that comes from: the ``"nearest"`` kept token, a ``"blend"`` of the nearest few, the nearest
            of uniform ``"anchors"`` that are always kept, or the last pass that was not pruned, resized (``"cached"``);
            or a :class:`~stepvar.methods.restoration.Restoration` with settings of its own.
        pruned_codes: whether pruned tokens add codes to the image, as published methods let them. What is sampled from
            restored features often differs from what dense generation would have sampled; without it the image stays
            there as the scales before left it.
        selection: videos only: rank the tokens of all frames of a pass together (``"clip"``), or keep the best of each
            frame, equally many in all (``"frame"``).
        temporal_weight: videos only: how many cells a step from frame to frame counts like, where distances decide.
        context_clips: videos only: a clip that the next one attends to is left ``"dense"``, or ``"pruned"`` like any.
            The image in front of a clip is one, at little cost; what it changes, the whole clip repeats.
        branches: one selection for both guidance branches, scored on the conditional one (``"shared"``), or one
            for each (``"separate"``, not possible when guidance combines the branches inside the stack).
    """

    neutral: ClassVar[Mapping[str, Any] | None] = {"keep": 1.0}
    speedup_settings: ClassVar[tuple[str, ...]] = ("keep", "last")

    keep: Share = 0.5
    last: Scales = None
    taper: Taper = 0.0
    blocks_before: Blocks = 0
    blocks_after: Blocks = 0
    scope: Scope = "stack"
    propagate: Propagated = "state"
    restore: RestorationName | Restoration = "nearest"
    pruned_codes: bool = True
    selection: Selected = "clip"
    temporal_weight: Annotated[float, Range(0, 1000)] = 1.0
    context_clips: ContextClips = "dense"
    branches: Branches = "shared"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._ratios:
            raise UsageError("keep=(): give one number, or one per scale counted from the end")
        if self.taper != type(self).taper and not isinstance(self.keep, (int, float)):
            raise UsageError(f"keep={self.keep!r}: give one number; taper spreads it over the scales")

    @abstractmethod
    def score(self, tokens: TokenMap, step: Step, state: State) -> Tensor:
        """How much each token of a dense map matters: (R, N) in float32, finite; the highest are kept."""

    # How many tokens are kept: known before the generation.

    @property
    def _ratios(self) -> tuple[float, ...]:
        return (self.keep,) if isinstance(self.keep, (int, float)) else tuple(self.keep)

    def ratio_at(self, step: Step) -> float:
        """The share of tokens kept at a scale."""
        if not isinstance(self.keep, (int, float)):
            return self.keep[-step.scales_from_end] if step.scales_from_end <= len(self.keep) else 1.0
        settings = step.settings
        last = self.last if self.last is not None else settings.late_scales()
        if step.scales_from_end > last:
            return 1.0
        if self.keep == 1 or not self.taper:
            return self.keep
        schedule = settings.schedule
        passes = [index for index in settings.passes if schedule.clip(index) == step.clip]
        sizes = [schedule[index].size for index in passes if schedule.scales_from_end(index) <= last]
        return min(1.0, taper_factor(sizes, self.keep, self.taper) * step.grid.size**-self.taper)

    def count_at(self, step: Step) -> int:
        """The number of tokens kept at a scale."""
        if step.is_context and self.context_clips == "dense":
            return step.grid.size
        grid, frames = self._selected_from(step)
        return frames * max(1, self.restoration.anchor_count(grid), round(self.ratio_at(step) * grid.size))

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.count_at(step) if self._inside(layer, depth) else step.grid.size

    def _inside(self, layer: int, depth: int) -> bool:
        return self.blocks_before <= layer < depth - self.blocks_after

    def _is_pruned(self, step: Step) -> bool:
        return self.count_at(step) < step.grid.size

    def acts_on_sublayers(self, step: Step) -> bool:
        return self.scope == "sublayer" or type(self).run_sublayer is not Pruning.run_sublayer

    @property
    def restoration(self) -> Restoration:
        """The strategy that :attr:`restore` names."""
        return self.restore if isinstance(self.restore, Restoration) else RESTORATIONS[self.restore]

    # Whether a plan can be served.

    def check(self, plan: Plan, info: ModelInfo) -> None:
        settings = plan.settings
        stacked = self.scope != "sublayer" and plan.guided and any(place != 0 for place in settings.cfg_layers)
        if self.branches == "separate" and stacked:
            raise UsageError(
                "branches='separate': guidance inside the stack mixes the branches token by token; use 'shared'"
            )
        reach = self.last if isinstance(self.keep, (int, float)) else len(self.keep)
        most = max(settings.schedule.scale_counts)
        if not isinstance(self.keep, (int, float)) and len(self.keep) > most:
            raise UsageError(f"keep: {len(self.keep)} values for {most} scales; give one, or at most one per scale")
        if reach is not None and reach <= settings.skipped and min(self._ratios) < 1:
            raise UsageError(
                f"keep and last: reach back {reach} scales, but the last {settings.skipped} are not run; "
                f"give at least {settings.skipped + 1}, counted from the end of the schedule"
            )
        self.sources(plan)

    def sources(self, plan: Plan) -> frozenset[int]:
        """The passes that pruned ones are restored from: the last one in front of each, in its clip, not pruned.

        Raises:
            UsageError: if a pruned pass has none.
        """
        return self.last_dense(plan) if self.restoration.reads_cache else frozenset()

    def last_dense(self, plan: Plan) -> frozenset[int]:
        """The last pass in front of each pruned one, in its clip, that is not pruned.

        Raises:
            UsageError: if a pruned pass has none.
        """
        found: set[int] = set()
        dense: dict[int, int] = {}
        for step in plan.computed:
            if not self._is_pruned(step):
                dense[step.clip] = step.index
            elif step.clip in dense:
                found.add(dense[step.clip])
            else:
                needs = "needs a scale that is not pruned in front of those that are; prune fewer"
                raise UsageError(f"restore={self.restore!r}: {needs}")
        return frozenset(found)

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """One share for the scales that hold most tokens, then for more of them, each down to the floor; then below."""
        fewest, most = settings.late_scales(), settings.late_scales(LATE)

        def stage(last: int, high: float, low: float) -> Stage:
            return lambda share: replace(self, keep=round(high - share * (high - low), 4), last=last)

        gentle = [stage(last, 1.0, FLOOR) for last in range(fewest, most + 1)]
        return [*gentle, stage(most, FLOOR, LOWEST)]

    # What happens at a pass.

    def start(self, plan: Plan) -> PruningState:
        return PruningState(sources=self.sources(plan))

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: State) -> TokenMap:
        first, last = self.blocks_before, run.depth - self.blocks_after
        acts = self._is_pruned(step) or step.index in state.sources
        if not acts or first >= last or self.scope == "sublayer":
            return run(tokens)
        if first:
            tokens = run(tokens, 0, first)
        stride = 1 if self.scope == "block" else last - first
        for start in range(first, last, stride):
            tokens = self._run_span(run, tokens, start, start + stride, step, state)
        return run(tokens, last) if last < run.depth else tokens

    def _run_span(self, run: RunBlocks, tokens: TokenMap, first: int, last: int, step: Step, state: State) -> TokenMap:
        """Blocks ``first`` to ``last`` on a dense map, of which they see a part if this scale is pruned."""
        if not self._is_pruned(step):
            after = run(tokens, first, last)
            kept = after if self.propagate == "state" else after.with_features(after.features - tokens.features)
            state.cached[first] = CachedFeatures.of(kept, step)
            return after
        selection = self.select(tokens, self.count_at(step), step, state)
        features = run(tokens.take(selection.kept), first, last).features
        if self.propagate == "state":
            return tokens.with_features(self._restored(features, selection, step, state, first))
        update = features - gather_tokens(tokens.features, selection.kept)
        return tokens.with_features(tokens.features + self._restored(update, selection, step, state, first))

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: State) -> Tensor:
        if self.scope != "sublayer" or not self._inside(ref.layer, ref.depth):
            return run(tokens)
        own, whole = tokens.features, self.propagate == "state"
        if not self._is_pruned(step):
            update = run(tokens)
            if step.index in state.sources:
                values = tokens.with_features(own + update if whole else update)
                state.cached[ref] = CachedFeatures.of(values, step)
            return update
        selection = self.select(tokens, self.count_at(step), step, state)
        update = run(tokens.take(selection.kept))
        if not whole:
            return self._restored(update, selection, step, state, ref)
        return self._restored(gather_tokens(own, selection.kept) + update, selection, step, state, ref) - own

    def _restored(
        self, values: Tensor, selection: Selection, step: Step, state: State, place: int | SublayerRef
    ) -> Tensor:
        return self.restoration.restore(values, selection, step, state.cached.get(place))

    def code_mask(self, step: Step, state: State) -> Tensor | None:
        kept = state.selections.get(step.index)
        if self.pruned_codes or not kept:
            return None
        own = kept[-1] if self.branches == "shared" else step.first_rows(kept[-1])
        mask = torch.zeros(len(own), step.grid.size, dtype=torch.bool, device=own.device)
        return mask.scatter(1, own, torch.ones_like(own, dtype=torch.bool))

    # Which tokens are kept.

    def select(self, tokens: TokenMap, count: int, step: Step, state: State) -> Selection:
        """Keeps the ``count`` best tokens of a dense map, row by row or once per sample."""
        shared = self.branches == "shared"
        scored = tokens.with_features(tokens.features[: step.samples]) if shared else tokens
        scores = checked_scores(self.score(scored, step, state), scored.features, self.name, step)
        kept = self._choose_by_frame(scores, count, step)
        if shared:  # where the branches run in two processes, each has scored its own
            kept = step.first_rows(kept)
        selection = self.restoration.sources(kept, step.grid, self.temporal_weight)
        state.record(step, kept)
        return selection.repeat(step.branches) if shared else selection

    def _selected_from(self, step: Step) -> tuple[Grid, int]:
        """The grid that a selection is made from, and how often it is in that of the step."""
        grid = step.grid
        return (Grid(1, grid.h, grid.w), grid.t) if self.selection == "frame" else (grid, 1)

    def _choose_by_frame(self, scores: Tensor, count: int, step: Step) -> Tensor:
        """Indices (R, count) of the tokens to keep, chosen from all or from each frame alone."""
        grid, frames = self._selected_from(step)
        if frames == 1:
            return self.choose(scores, count, grid)
        kept = self.choose(scores.unflatten(1, (frames, -1)).flatten(0, 1), count // frames, grid)
        starts = torch.arange(0, step.grid.size, grid.size, device=kept.device)
        return (kept.unflatten(0, (-1, frames)) + starts[:, None]).flatten(1)

    def choose(self, scores: Tensor, count: int, grid: Grid) -> Tensor:
        """Indices (R, count), ascending, of the tokens to keep by their scores (R, N): anchors first, then top-k."""
        anchors = self.restoration.anchors(grid, scores.device)
        return top_tokens(scores, count, None if anchors is None else anchors.expand(len(scores), -1))


def taper_factor(sizes: Sequence[int], keep: float, taper: float) -> float:
    """The c for which ``sum(min(n, c * n ** (1 - taper)))`` is the share ``keep`` of the sum of all n."""
    left, rest = keep * sum(sizes), sorted(sizes)
    while rest:
        found = left / sum(n ** (1 - taper) for n in rest)
        if found <= rest[0] ** taper:  # the smallest saturates first
            return found
        left -= rest.pop(0)
    return float("inf")
