"""LazyVAR: the last scales in one pass, each where it is needed (CVPR 2026; no code was released)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import ModelInfo, PassResult, RunBlocks
from stepvar.core.tokens import TokenMap, scatter_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage
from stepvar.methods.registry import register

LOWEST = 0.1
"""The smallest part of the shares that a speed-up leaves, before another scale joins the group."""


@dataclass
class LazyVARState(MethodState):
    """What LazyVAR keeps during a generation.

    Attributes:
        latent: (B, d, H, W), the image behind the pass that was run last, in front of the group.
        change: (B, 1, H, W), how much the last pass in front of the group changed each cell.
        masks: by pass, the tokens (B, N) that run and whose codes count.
    """

    latent: Tensor | None = None
    change: Tensor | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)


@register
@dataclass(frozen=True)
class LazyVAR(Method[LazyVARState]):
    """Runs the last scales together, each where the image still changes, the finest where it changes most.

    Known from the paper, of which no code was released: the change of a cell is ``1 - cos(f_(k-1), f_k)`` between the
    accumulated latents, at full size, of the two scales in front of the group; the scales of the group start from the
    same latent, brought down to each grid, and run in one pass, where each sees the scales before it as in training;
    their cells are disjoint, the highest ranks going to the largest scale; elsewhere a scale adds nothing to the image.
    For Infinity at 1024x1024 the group is 32x32 to 64x64 with the shares that are the default here. Our reading of what
    is not said: the change is averaged down to each grid; ranks are counted in cells of that grid, so that the share of
    the image that larger scales take is left out; both guidance branches run on the same cells.

    Attributes:
        keep: the share of each of the last scales that runs, the last entry for the last one; together at most 1, as
            no place belongs to two scales. All these scales run in one pass.
    """

    name: ClassVar[str] = "lazyvar"
    speedup_settings: ClassVar[tuple[str, ...]] = ("keep",)

    keep: Annotated[Sequence[float], Range(above=0, most=1)] = (0.2, 0.1, 0.05, 0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.keep) < 2:
            raise UsageError(f"keep={self.keep!r}: give the shares of at least two scales, which run together")
        if sum(self.keep) > 1 + 1e-9:
            raise UsageError(f"keep={self.keep!r}: the sum is {sum(self.keep):g}; no place runs twice, give at most 1")

    def edit(self, settings: Settings) -> Settings:
        scales = settings.scales
        if scales < len(self.keep) + 2:
            raise UsageError(
                f"keep: {len(self.keep)} shares need as many scales and two in front of them; the schedule runs "
                f"{scales}, give at most {max(scales - 2, 0)}"
            )
        return replace(settings, groups=(settings.passes[-len(self.keep) :],))

    def check(self, plan: Plan, info: ModelInfo) -> None:
        if plan.schedule.kv_scope != "all" or plan.settings.forced:
            raise UsageError(
                "lazyvar: runs the last scales of an image together, which needs scales that see all earlier ones; "
                "take another method"
            )

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """Two scales together, on all of the image or less of it; then the same with one more, and one more."""
        shares = tuple(0.5**place for place in range(settings.scales))

        def stage(count: int) -> Stage:
            whole = sum(shares[:count])
            return lambda part: LazyVAR(
                tuple(round((1 - part * (1 - LOWEST)) * own / whole, 5) for own in shares[:count])
            )

        return [stage(count) for count in range(2, settings.scales - 1)]

    def count_at(self, step: Step) -> int:
        """Tokens that run at a scale."""
        group = step.settings.groups[0]
        if step.index not in group:
            return step.grid.size
        return max(1, round(self.keep[group.index(step.index)] * step.grid.size))

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.count_at(step)

    def start(self, plan: Plan) -> LazyVARState:
        return LazyVARState()

    def after_pass(self, result: PassResult, step: Step, state: LazyVARState) -> None:
        first = step.settings.groups[0][0]
        if step.index == first - 2:
            state.latent = result.latent.clone()
        if step.index == first - 1:
            assert state.latent is not None
            state.change = 1 - F.cosine_similarity(state.latent, result.latent, dim=1).unsqueeze(1)
            state.latent = None

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: LazyVARState) -> TokenMap:
        return run(tokens)

    def run_group(
        self, run: RunBlocks, maps: Sequence[TokenMap], steps: Sequence[Step], state: LazyVARState
    ) -> Sequence[TokenMap]:
        chosen = [self.choose(step, steps, state) for step in steps]
        kept = [own.repeat(step.branches, 1) for own, step in zip(chosen, steps, strict=True)]
        pruned = [tokens.take(index) for tokens, index in zip(maps, kept, strict=True)]
        for step, own in zip(steps, chosen, strict=True):
            state.record(step, own)
            mask = torch.zeros(len(own), step.grid.size, dtype=torch.bool, device=own.device)
            state.masks[step.index] = mask.scatter_(1, own, True)
        ran = run(TokenMap.joined(pruned)).parts(pruned)
        # What does not run goes on as it came; its codes do not count.
        return [
            tokens.with_features(scatter_tokens(tokens.features, index, own.features))
            for tokens, index, own in zip(maps, kept, ran, strict=True)
        ]

    def choose(self, step: Step, steps: Sequence[Step], state: LazyVARState) -> Tensor:
        """The tokens (B, count) of a scale that run, ascending: those behind the ranks that larger scales take."""
        assert state.change is not None
        grid, count = step.grid, self.count_at(step)
        change = F.interpolate(state.change, size=(grid.h, grid.w), mode="area").flatten(1)
        taken = sum(self.count_at(other) / other.grid.size for other in steps if other.index > step.index)
        start = min(round(taken * grid.size), grid.size - count)
        return change.argsort(dim=1, descending=True, stable=True)[:, start : start + count].sort(dim=1).values

    def code_mask(self, step: Step, state: LazyVARState) -> Tensor | None:
        return state.masks.pop(step.index, None)
