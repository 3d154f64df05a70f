"""Pruning by a score: what StepVAR and the selections that it is compared with have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stepvar.errors import UsageError
from stepvar.methods.base import Method, ModelFacts, RunBlocks
from stepvar.methods.propagation import Propagated, nearest_kept, propagate
from stepvar.methods.scores import top_tokens
from stepvar.plan import Plan, Step
from stepvar.tokens import Selection, TokenMap

Scope = Literal["stack", "block"]
Branches = Literal["shared", "separate"]


@dataclass(frozen=True)
class Pruning(Method):
    """At late scales, runs the blocks on the highest-scoring tokens and rebuilds the dense map behind them.

    Attributes:
        keep: share of tokens kept, in (0, 1]. One number holds for the last ``last`` scales; a sequence gives one
            number per scale, the last entry for the last scale (``keep=(0.7, 0.4)``). At least one token is kept;
            1 is exactly dense.
        last: how many scales from the end a single ``keep`` prunes; None: the fewest that hold more than half
            of all tokens.
        blocks_before: blocks in front of the pruned span that see all tokens.
        blocks_after: blocks behind the pruned span that see all tokens.
        scope: select once for the whole span (``"stack"``), or anew for each of its blocks (``"block"``).
        propagate: what a pruned token takes from its nearest kept one, its ``"state"`` or its ``"update"``.
        branches: one selection for both guidance branches, scored on the conditional one (``"shared"``), or one
            for each (``"separate"``, not possible when guidance mixes the branches inside the stack).
    """

    keep: float | Sequence[float] = 0.5
    last: int | None = None
    blocks_before: int = 0
    blocks_after: int = 0
    scope: Scope = "stack"
    propagate: Propagated = "state"
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
        for name, allowed in (
            ("scope", ("stack", "block")),
            ("propagate", ("state", "update")),
            ("branches", ("shared", "separate")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")

    @abstractmethod
    def score(self, tokens: TokenMap, step: Step) -> Tensor:
        """Scores (R, N) in float32 of a dense map; the highest are kept."""

    def ratio_at(self, step: Step) -> float:
        """The share of tokens kept at a scale."""
        if isinstance(self.keep, (int, float)):
            last = self.last if self.last is not None else step.plan.schedule.late_scales()
            return self.keep if step.rank <= last else 1.0
        return self.keep[-step.rank] if step.rank <= len(self.keep) else 1.0

    def count_at(self, step: Step) -> int:
        """The number of tokens kept at a scale."""
        return max(1, round(self.ratio_at(step) * step.grid.size))

    def check(self, plan: Plan, facts: ModelFacts) -> None:
        if self.branches == "separate" and plan.guided and any(place != 0 for place in plan.guidance_at):
            raise UsageError(
                "branches='separate': guidance inside the stack mixes the branches token by token; use 'shared'"
            )

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        inside = self.blocks_before <= layer < depth - self.blocks_after
        return self.count_at(step) if inside else step.grid.size

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        count, first, last = self.count_at(step), self.blocks_before, run.depth - self.blocks_after
        if count == step.grid.size or first >= last:
            return run(tokens)
        if first:
            tokens = run(tokens, 0, first)
        stride = 1 if self.scope == "block" else last - first
        for start in range(first, last, stride):
            selection = self.select(tokens, count, step)
            thinned = run(tokens.take(selection.kept), start, start + stride)
            tokens = propagate(tokens, thinned, selection, self.propagate)
        return run(tokens, last) if last < run.depth else tokens

    def select(self, tokens: TokenMap, count: int, step: Step) -> Selection:
        """Keeps the ``count`` best tokens of a dense map, row by row or once per sample."""
        shared = self.branches == "shared"
        scored = tokens.with_features(tokens.features[: step.samples]) if shared else tokens
        kept = top_tokens(self.score(scored, step), count)
        selection = Selection(kept, nearest_kept(kept, step.grid))
        step.selections.append(kept)
        return selection.repeat(step.branches) if shared else selection
