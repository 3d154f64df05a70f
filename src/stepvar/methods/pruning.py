"""Pruning by a score: what StepVAR and the selections that it is compared with have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import Grid, Selection, TokenMap, gather_tokens
from stepvar.errors import UsageError
from stepvar.methods.base import Method, ModelInfo, RunBlocks, Stage, SublayerRef
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.propagation import Propagated
from stepvar.methods.restoration import RESTORATIONS, Restoration, RestorationName, index_tensor
from stepvar.methods.scores import top_tokens

Scope = Literal["stack", "block", "sublayer"]
Branches = Literal["shared", "separate"]
Selected = Literal["clip", "frame"]
ContextClips = Literal["dense", "pruned"]

MOST_TEMPORAL_WEIGHT = 1000

FLOOR = 0.25
"""A budget widens to earlier scales before it keeps less than this: pruning more is said to show (StepVAR)."""
LOWEST = 0.05
"""A budget keeps at least this share."""
LATE = 0.95
"""Share of all tokens in the scales that a budget may prune; the early ones fix the layout."""


@dataclass(frozen=True)
class Pruning(Method):
    """At late scales, runs the blocks on the highest-scoring tokens and rebuilds the dense map behind them.

    A subclass says how tokens score; how the others are rebuilt is a setting. Every selection goes with every
    restoring, so an ablation is a product and not a list.

    Attributes:
        keep: share of tokens kept, in (0, 1]. One number holds for the last ``last`` scales; a sequence gives one
            number per scale, the last entry for the last scale (``keep=(0.7, 0.4)``). At least one token is kept;
            1 is exactly dense.
        last: how many scales from the end of the schedule a single ``keep`` prunes; None: the fewest that hold more
            than half of the tokens that are run.
        blocks_before: blocks in front of the pruned span that see all tokens.
        blocks_after: blocks behind the pruned span that see all tokens.
        scope: select once for the whole span (``"stack"``), or anew for each of its blocks (``"block"``) or of their
            residual sub-layers (``"sublayer"``).
        propagate: what a pruned token takes from the kept one that stands in for it, its ``"state"`` or its
            ``"update"``, the difference that the blocks made.
        restore: where that comes from: the ``"nearest"`` kept token, a ``"blend"`` of the nearest few, the nearest
            of uniform ``"anchors"`` that are always kept, or the last pass that was not pruned, resized (``"cached"``);
            or a :class:`~stepvar.methods.restoration.Restoration` with settings of its own.
        selection: videos only: rank the tokens of all frames of a pass together (``"clip"``), or keep the best of each
            frame, equally many in all (``"frame"``).
        temporal_weight: videos only: how many cells a step from frame to frame counts like, where distances decide.
        context_clips: videos only: a clip that the next one attends to is left ``"dense"``, or ``"pruned"`` like any.
            The image in front of a clip is one, at little cost; what it changes, the whole clip repeats.
        branches: one selection for both guidance branches, scored on the conditional one (``"shared"``), or one
            for each (``"separate"``, not possible when guidance mixes the branches inside the stack).
    """

    neutral: ClassVar[Mapping[str, Any] | None] = {"keep": 1.0}
    budgeted: ClassVar[tuple[str, ...]] = ("keep", "last")

    keep: float | Sequence[float] = 0.5
    last: int | None = None
    blocks_before: int = 0
    blocks_after: int = 0
    scope: Scope = "stack"
    propagate: Propagated = "state"
    restore: RestorationName | Restoration = "nearest"
    selection: Selected = "clip"
    temporal_weight: float = 1.0
    context_clips: ContextClips = "dense"
    branches: Branches = "shared"

    def __post_init__(self) -> None:
        ratios = [self.keep] if isinstance(self.keep, (int, float)) else list(self.keep)
        if not ratios:
            raise UsageError("keep=(): give one number, or one per scale counted from the end")
        for ratio in ratios:
            if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
                raise UsageError(f"keep={ratio!r}: must be a number above 0 and at most 1 (1 keeps every token)")
        if self.last is not None and self.last < 1:
            raise UsageError(f"last={self.last}: must be at least 1, or None to choose by the schedule")
        for name in ("blocks_before", "blocks_after"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 <= self.temporal_weight <= MOST_TEMPORAL_WEIGHT:
            raise UsageError(f"temporal_weight={self.temporal_weight}: must be from 0 to {MOST_TEMPORAL_WEIGHT}")
        choices: dict[str, Any] = {"scope": Scope, "propagate": Propagated, "selection": Selected}
        choices |= {"context_clips": ContextClips, "branches": Branches}
        if not isinstance(self.restore, Restoration):
            choices["restore"] = RestorationName
        for name, kind in choices.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")

    @abstractmethod
    def score(self, tokens: TokenMap, step: Step) -> Tensor:
        """Scores (R, N) in float32 of a dense map; the highest are kept."""

    def stages(self, plan: Plan) -> Sequence[Stage]:
        """One share for the scales that hold most tokens, then for more of them, each down to the floor; then below."""
        fewest, most = plan.late_scales(), plan.late_scales(LATE)

        def stage(last: int, high: float, low: float) -> Stage:
            return lambda share: replace(self, keep=round(high - share * (high - low), 4), last=last)

        gentle = [stage(last, 1.0, FLOOR) for last in range(fewest, most + 1)]
        return [*gentle, stage(most, FLOOR, LOWEST)]

    def extra_passes(self, step: Step, info: ModelInfo) -> float:
        if not self._is_pruned(step):
            return 0.0
        blocks = max(0, info.depth - self.blocks_before - self.blocks_after)
        selections = {"stack": 1, "block": blocks, "sublayer": blocks * len(info.sublayers)}[self.scope]
        return 30.0 * selections  # at most: both scores with eight power iterations 26, thinning and rebuilding 4

    def ratio_at(self, step: Step) -> float:
        """The share of tokens kept at a scale."""
        if isinstance(self.keep, (int, float)):
            last = self.last if self.last is not None else step.plan.late_scales()
            return self.keep if step.scales_from_end <= last else 1.0
        return self.keep[-step.scales_from_end] if step.scales_from_end <= len(self.keep) else 1.0

    def count_at(self, step: Step) -> int:
        """The number of tokens kept at a scale."""
        if step.is_context and self.context_clips == "dense":
            return step.grid.size
        grid, frames = self._selected_from(step)
        fewest = max(1, len(self.restoration.anchors(grid)))
        return frames * max(fewest, round(self.ratio_at(step) * grid.size))

    def _selected_from(self, step: Step) -> tuple[Grid, int]:
        """The grid that a selection is made from, and how often it is in that of the step."""
        grid = step.grid
        return (Grid(1, grid.h, grid.w), grid.t) if self.selection == "frame" else (grid, 1)

    @property
    def restoration(self) -> Restoration:
        """The strategy that :attr:`restore` names."""
        return self.restore if isinstance(self.restore, Restoration) else RESTORATIONS[self.restore]

    def check(self, plan: Plan, info: ModelInfo) -> None:
        stacked = self.scope != "sublayer" and plan.guided and any(place != 0 for place in plan.cfg_layers)
        if self.branches == "separate" and stacked:
            raise UsageError(
                "branches='separate': guidance inside the stack mixes the branches token by token; use 'shared'"
            )
        self._check_reach(plan)
        steps = [step for step in plan.steps(1) if step.computed]
        if self.restoration.reads_past and any(
            self._is_pruned(step) and self._source_of(step) is None for step in steps
        ):
            raise UsageError(
                "restore='cached': needs a scale that is not pruned in front of those that are; prune fewer"
            )

    def _check_reach(self, plan: Plan) -> None:
        """Refuses to prune nothing but scales that are not run."""
        ratios = [self.keep] if isinstance(self.keep, (int, float)) else self.keep
        reach = self.last if isinstance(self.keep, (int, float)) else len(self.keep)
        if reach is not None and reach <= plan.skipped and min(ratios) < 1:
            raise UsageError(
                f"keep and last: reach back {reach} scales, but the last {plan.skipped} are not run; "
                f"give at least {plan.skipped + 1}, counted from the end of the schedule"
            )

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.count_at(step) if self._inside(layer, depth) else step.grid.size

    def _inside(self, layer: int, depth: int) -> bool:
        return self.blocks_before <= layer < depth - self.blocks_after

    def _is_pruned(self, step: Step) -> bool:
        return self.count_at(step) < step.grid.size

    def _source_of(self, step: Step) -> int | None:
        """The last pass in front of a pruned one, in its clip, that is not pruned."""
        earlier = (other for other in step.plan.steps(1) if other.computed and other.index < step.index)
        dense = [other.index for other in earlier if other.clip == step.clip and not self._is_pruned(other)]
        return dense[-1] if dense else None

    def _is_source(self, step: Step) -> bool:
        """Whether a later pass is restored from this one."""
        if not self.restoration.reads_past:
            return False
        if "sources" not in step.memo:
            pruned = (other for other in step.plan.steps(1) if other.computed and self._is_pruned(other))
            step.memo["sources"] = {self._source_of(other) for other in pruned}
        return step.index in step.memo["sources"]

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        first, last = self.blocks_before, run.depth - self.blocks_after
        acts = self._is_pruned(step) or self._is_source(step)
        if not acts or first >= last or self.scope == "sublayer":
            return run(tokens)
        if first:
            tokens = run(tokens, 0, first)
        stride = 1 if self.scope == "block" else last - first
        for start in range(first, last, stride):
            tokens = self._run_span(run, tokens, start, start + stride, step)
        return run(tokens, last) if last < run.depth else tokens

    def _run_span(self, run: RunBlocks, tokens: TokenMap, first: int, last: int, step: Step) -> TokenMap:
        """Blocks ``first`` to ``last`` on a dense map, which is thinned for them if this scale is pruned."""
        if not self._is_pruned(step):
            after = run(tokens, first, last)
            kept = after if self.propagate == "state" else after.with_features(after.features - tokens.features)
            self._past(step)[first] = CachedFeatures.of(kept, step)
            return after
        selection = self.select(tokens, self.count_at(step), step)
        features = run(tokens.take(selection.kept), first, last).features
        if self.propagate == "state":
            return tokens.with_features(self._restored(features, selection, step, first))
        update = features - gather_tokens(tokens.features, selection.kept)
        return tokens.with_features(tokens.features + self._restored(update, selection, step, first))

    def run_sublayer(self, run: Callable[[TokenMap], Tensor], tokens: TokenMap, ref: SublayerRef, step: Step) -> Tensor:
        if self.scope != "sublayer" or not self._inside(ref.layer, ref.depth):
            return run(tokens)
        own, state = tokens.features, self.propagate == "state"
        if not self._is_pruned(step):
            update = run(tokens)
            if self._is_source(step):
                self._past(step)[ref] = CachedFeatures.of(tokens.with_features(own + update if state else update), step)
            return update
        selection = self.select(tokens, self.count_at(step), step)
        update = run(tokens.take(selection.kept))
        if not state:
            return self._restored(update, selection, step, ref)
        return self._restored(gather_tokens(own, selection.kept) + update, selection, step, ref) - own

    def _past(self, step: Step) -> dict[Any, CachedFeatures]:
        """What the last pass that was not pruned left, by first block of the span or by sub-layer."""
        past: dict[Any, CachedFeatures] = step.memo.setdefault("past", {})
        return past

    def _restored(self, values: Tensor, selection: Selection, step: Step, place: Any) -> Tensor:
        return self.restoration.restore(values, selection, step, self._past(step).get(place))

    def select(self, tokens: TokenMap, count: int, step: Step) -> Selection:
        """Keeps the ``count`` best tokens of a dense map, row by row or once per sample."""
        shared = self.branches == "shared"
        scored = tokens.with_features(tokens.features[: step.samples]) if shared else tokens
        kept = self._chosen(self.score(scored, step), count, step)
        selection = self.restoration.sources(kept, step.grid, self.temporal_weight)
        step.selections.append(kept)
        return selection.repeat(step.branches) if shared else selection

    def _chosen(self, scores: Tensor, count: int, step: Step) -> Tensor:
        """Indices (R, count) of the tokens to keep, chosen from all or from each frame alone."""
        grid, frames = self._selected_from(step)
        if frames == 1:
            return self.choose(scores, count, step)
        kept = self.choose(scores.unflatten(1, (frames, -1)).flatten(0, 1), count // frames, replace(step, grid=grid))
        starts = torch.arange(0, step.grid.size, grid.size, device=kept.device)
        return (kept.unflatten(0, (-1, frames)) + starts[:, None]).flatten(1)

    def choose(self, scores: Tensor, count: int, step: Step) -> Tensor:
        """Indices (R, count), ascending, of the tokens to keep by their scores (R, N): anchors first."""
        anchors = self.restoration.anchors(step.grid)
        if not anchors:
            return top_tokens(scores, count)
        return top_tokens(scores, count, index_tensor(anchors, scores.device).expand(len(scores), -1))
