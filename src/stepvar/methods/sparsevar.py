"""SparseVAR: frequency-aware exclusion of tokens (Chen et al., ICCV 2025; arXiv 2507.20454)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Resampling, Settings, Step
from stepvar.core.stack import ModelInfo, PassResult, RunBlocks
from stepvar.core.tokens import Grid, TokenMap, gather_tokens, scatter_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage
from stepvar.methods.pruning import FLOOR, LATE, LOWEST
from stepvar.methods.registry import register
from stepvar.methods.restoration import Blend

Candidates = Literal["nearest", "first"]
Features = Literal["cell", "scrambled"]

RELEASED = 3
"""Scales from the end that exclude tokens in the published setting."""

CANDIDATES = 4
"""Anchors that an excluded token is compared with."""


class CellValues(NamedTuple):
    """Values (B, N) or (B, N, C) of the cells of a grid."""

    values: Tensor
    grid: Grid

    def at(self, grid: Grid) -> Tensor:
        """On another grid, each cell with the values of the one that it lies in: (B, N') or (B, N', C)."""
        return self.values[:, nearest_cells(self.grid, grid, self.values.device)]


@dataclass
class SparseVARState(MethodState):
    """What SparseVAR keeps during a generation.

    Attributes:
        sources: the passes in front of those that exclude tokens.
        error: of the last of these, how much the measured blocks changed each token, (B, N); 0 where they did not run.
        features: of the same pass, by which cells are compared, (B, N, V).
        zeroed: the pass that excluded last, and which of its tokens add no codes, (B, N).
    """

    sources: frozenset[int] = frozenset()
    error: CellValues | None = None
    features: CellValues | None = None
    zeroed: tuple[int, Tensor] | None = None


class Exclusion(NamedTuple):
    """Which tokens of a pass are excluded, and what becomes of them.

    Attributes:
        order: (B, K), the kept tokens from the least error of the pass before to the largest.
        excluded: (B, N), bool.
        similarity: (B, N, 4), of each cell to its candidates among the anchors.
        anchor: (B, N), the most similar candidate.
        recoverable: (B, N), bool: the tokens that are excluded and similar enough to take their anchor's features.
    """

    order: Tensor
    excluded: Tensor
    similarity: Tensor
    anchor: Tensor
    recoverable: Tensor

    @property
    def kept(self) -> Tensor:
        """(B, K), ascending."""
        return self.order.sort(dim=1).values

    @property
    def source(self) -> Tensor:
        """(B, N), the token whose features each takes behind the blocks."""
        own = torch.arange(self.anchor.shape[1], device=self.anchor.device)
        return torch.where(self.recoverable, self.anchor, own)


@register
@dataclass(frozen=True)
class SparseVAR(Method[SparseVARState]):
    """Excludes the tokens that a few blocks changed least at the scale before; similar anchors fill them in.

    At the last scales, once in front of the first block: the mean squared difference between the features behind the
    measured blocks and in front of them, at the pass before, is brought to this grid (each cell takes that of the one
    it lies in). The tokens of the largest error stay; a token that was itself excluded has the error 0. Behind the
    last block an excluded token takes the features of the most similar of its four candidates among uniform anchors,
    by the cosine of the guided logits of the pass before, if it is similar enough; otherwise it keeps the features
    that entered, and its codes are not added. Where a clip of a video is attended to by the next one, all tokens run.

    The authors released no code. The rule is that of the public reproduction on Infinity-2B, as it is meant. The preset
    ``reproduction`` is what that code computes, with each of its faults: the first four anchors in place of the nearest
    four, features scrambled by a view that should be a transpose, anchors that may themselves be excluded, inputs
    resampled by area at every scale, and all tokens kept where no error exceeds the threshold. The preset
    ``threshold`` is the rule as meant with its published threshold.

    Attributes:
        keep: share of tokens kept, in (0, 1]; with a threshold, the most that are kept. At least the anchors stay.
        last: how many scales from the end exclude tokens; None: three (published: 40x40, 48x48 and 64x64), or all but
            the first where there are fewer.
        threshold: keep the share of tokens that at the scale before had more than this part of the largest error
            (published: 0.6). The number is known only when the image is, so that one image runs at a time, without CUDA
            graphs, and each scale waits for the device once. None: ``keep`` says how many.
        blocks: the first and the last block that are measured; None: from 3/8 to 1/2 of the depth (published: 12 to
            15 of 32).
        anchor_step: rows and columns between neighbouring anchors; the last row and column have some, too.
        similarity: how similar the best candidate has to be, a cosine.
        candidates: the four ``"nearest"`` anchors of the frame, or the ``"first"`` four of it for all its cells.
        features: compare the logits of each ``"cell"``, or ``"scrambled"`` ones: the logits of a pass (N, V) read as
            if they were stored as (V, N).
        keep_anchors: whether anchors always stay, within the number kept.
        none_above: where a threshold keeps no token, keep the ``"fewest"`` (the anchors, or one), or ``"all"``.
        resampling: how the codes so far are brought to the grid of every pass: as the ``"model"`` does, or by
            ``"area"``.
    """

    name: ClassVar[str] = "sparsevar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "threshold": {"keep": 1.0, "threshold": 0.6},
        "reproduction": {
            "keep": 1.0,
            "threshold": 0.6,
            "candidates": "first",
            "features": "scrambled",
            "keep_anchors": False,
            "none_above": "all",
            "resampling": "area",
        },
    }
    neutral: ClassVar[Mapping[str, Any] | None] = {"keep": 1.0}
    speedup_settings: ClassVar[tuple[str, ...]] = ("keep", "last")

    keep: Annotated[float, Range(above=0, most=1, note="1 keeps every token")] = 0.5
    last: Annotated[int | None, Range(1, 1000, none="for the last three, or all but the first")] = None
    threshold: Annotated[float | None, Range(least=0, below=1, none="to keep the share 'keep'")] = None
    blocks: Annotated[Sequence[int] | None, Range(0, 1000, none="for 3/8 to 1/2 of the depth")] = None
    anchor_step: Annotated[int, Range(1, 10_000)] = 4
    similarity: Annotated[float, Range(-1, 1)] = 0.8
    candidates: Candidates = "nearest"
    features: Features = "cell"
    keep_anchors: bool = True
    none_above: Literal["fewest", "all"] = "fewest"
    resampling: Resampling = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None and (len(self.blocks) != 2 or self.blocks[0] > self.blocks[1]):
            raise UsageError(f"blocks={tuple(self.blocks)}: give two, the first and the last that are measured")

    # Before the generation.

    def edit(self, settings: Settings) -> Settings:
        return settings if self.resampling == "model" else replace(settings, resampling=self.resampling)

    def reach(self, settings: Settings) -> int:
        """How many scales from the end exclude tokens."""
        return min(RELEASED, min(settings.schedule.scale_counts) - 1) if self.last is None else self.last

    def source(self, step: Step) -> int | None:
        """The pass whose errors and logits decide which tokens of this one stay; None: all do."""
        settings = step.settings
        late = step.scales_from_end <= self.reach(settings)
        if not late or step.is_context or step.forced or step.index == settings.passes[0]:
            return None
        before = settings.passes[settings.passes.index(step.index) - 1]
        usable = settings.schedule.clip(before) == step.clip and before not in settings.forced
        return before if usable else None

    def fewest(self, grid: Grid) -> int:
        """How many tokens stay whatever their errors are."""
        rows, columns = (1 + -(-(side - 1) // self.anchor_step) for side in (grid.h, grid.w))
        return grid.t * rows * columns if self.keep_anchors else 1

    def count_at(self, step: Step) -> int:
        """How many tokens are kept; with a threshold the most that may be."""
        if self.source(step) is None:
            return step.grid.size
        return max(self.fewest(step.grid), round(self.keep * step.grid.size))

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.count_at(step)

    def excludes(self, step: Step) -> bool:
        """Whether tokens of a pass may be excluded."""
        return self.source(step) is not None and (self.threshold is not None or self.count_at(step) < step.grid.size)

    @property
    def knows_counts(self) -> bool:
        return self.threshold is None

    def measured(self, depth: int) -> tuple[int, int]:
        """The first measured block, and the one behind the last."""
        if self.blocks is not None:
            return self.blocks[0], self.blocks[1] + 1
        first = 3 * depth // 8
        return first, max(first + 1, depth // 2)

    def check(self, plan: Plan, info: ModelInfo) -> None:
        if self.measured(info.depth)[1] > info.depth:
            raise UsageError(f"blocks={self.blocks}: the model has {info.depth} blocks, 0 to {info.depth - 1}")
        last, shortest = self.reach(plan.settings), min(plan.schedule.scale_counts)
        if last <= plan.settings.skipped:
            raise UsageError(
                f"last={last}: the last {plan.settings.skipped} scales are not run; "
                f"give at least {plan.settings.skipped + 1}, counted from the end of the schedule"
            )
        if self.threshold is not None and plan.samples > 1:
            raise UsageError(
                f"threshold={self.threshold}: each image says how many of its tokens stay, so {plan.samples} cannot "
                "run together; generate them one by one, or leave the threshold out and give keep"
            )
        if last >= shortest or not last:
            raise UsageError(
                f"last={last}: {self.name} selects by the scale before, which the first of {shortest} scales has "
                f"not; prune at most the last {shortest - 1} scales"
            )

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """As pruning by a score: the scales that hold most tokens, then more of them; nothing with a threshold."""
        if self.threshold is not None:
            return ()
        most = min(settings.late_scales(LATE), min(settings.schedule.scale_counts) - 1)
        fewest = min(settings.late_scales(), most)

        def stage(last: int, high: float, low: float) -> Stage:
            return lambda share: replace(self, keep=round(high - share * (high - low), 4), last=last)

        return [*(stage(last, 1.0, FLOOR) for last in range(fewest, most + 1)), stage(most, FLOOR, LOWEST)]

    def start(self, plan: Plan) -> SparseVARState:
        sources = (self.source(step) for step in plan.computed if self.excludes(step))
        return SparseVARState(sources=frozenset(index for index in sources if index is not None))

    # At a pass.

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: SparseVARState) -> TokenMap:
        if not self.excludes(step):
            return self._measure(run, tokens, step, state)
        exclusion = self.exclude(step, state)
        state.error = state.features = None
        state.record(step, exclusion.kept)
        state.zeroed = (step.index, exclusion.excluded & ~exclusion.recoverable)
        kept, source = (index.repeat(step.branches, 1) for index in (exclusion.kept, exclusion.source))
        after = self._measure(run, tokens.take(kept), step, state)
        entered = run.entered(tokens).features.to(after.features.dtype)
        whole = scatter_tokens(entered, kept, after.features)
        return tokens.with_features(gather_tokens(whole, source))

    def _measure(self, run: RunBlocks, tokens: TokenMap, step: Step, state: SparseVARState) -> TokenMap:
        """All blocks on a map; notes how much the measured ones change its tokens, where the next pass asks."""
        if step.index not in state.sources:
            return run(tokens)
        first, end = self.measured(run.depth)
        before = run(tokens, 0, first) if first else tokens
        after = run(before, first, end)
        change = after.features.float() - run.entered(before, first).features.float()
        by_row = step.every_row(change.square().mean(dim=-1))
        error = by_row.unflatten(0, (-1, step.samples)).mean(dim=0)
        if not tokens.is_dense:
            zeros = error.new_zeros(step.samples, tokens.grid.size)
            error = zeros.scatter(1, tokens.positions[: step.samples], error)
        state.error = CellValues(error, tokens.grid)
        return run(after, end) if end < run.depth else after

    def after_pass(self, result: PassResult, step: Step, state: SparseVARState) -> None:
        if step.index in state.sources and result.logits is not None:
            state.features = CellValues(comparable(result.logits.flatten(2), self.features), step.grid)

    def code_mask(self, step: Step, state: SparseVARState) -> Tensor | None:
        if state.zeroed is None or state.zeroed[0] != step.index:
            return None
        return ~state.zeroed[1]

    # Which tokens stay.

    def exclude(self, step: Step, state: SparseVARState) -> Exclusion:
        """The tokens of a pass that are excluded, by what the pass before left in the state."""
        assert state.error is not None and state.features is not None  # the first scale of a clip excludes none
        grid, error = step.grid, state.error.at(step.grid)
        anchors = anchor_cells(grid, self.anchor_step, error.device, again=self.candidates == "first")
        near = self._candidates(anchors, grid)
        if self.keep_anchors:
            error = error.index_fill(1, in_every_frame(anchors, grid).flatten(), torch.inf)
        order = error.sort(dim=1, stable=True).indices[:, -self._count(step, state) :]
        excluded = torch.ones_like(error, dtype=torch.bool).scatter(1, order, False)
        features = state.features.at(grid)
        similarity = torch.stack([(features * features[:, cells]).sum(-1) for cells in near.unbind(1)], dim=-1)
        best = similarity.argmax(dim=-1, keepdim=True)  # the first of equals
        anchor = near.expand(len(best), -1, -1).gather(2, best).squeeze(2)
        recoverable = excluded & (similarity.gather(2, best).squeeze(2) > self.similarity)
        return Exclusion(order, excluded, similarity, anchor, recoverable)

    def _candidates(self, anchors: Tensor, grid: Grid) -> Tensor:
        """(N, 4 or all there are), the anchors (A,) of its frame that each cell is compared with."""
        if self.candidates == "first":
            return in_every_frame(anchors[:CANDIDATES].expand(grid.h * grid.w, -1), grid)
        found = Blend(CANDIDATES).sources(anchors.unsqueeze(0), Grid(1, grid.h, grid.w)).source[0]
        return in_every_frame(anchors[found], grid)

    def _count(self, step: Step, state: SparseVARState) -> int:
        """How many tokens are kept; with a threshold this waits for the device."""
        most, fewest = step.tokens[0], self.fewest(step.grid)
        if self.threshold is None or state.error is None or state.error.values.is_meta:
            return most
        count = int(share_above(state.error.values, self.threshold) * step.grid.size)
        if count == 0 and self.none_above == "all":
            count = most
        state.counts[step.index] = min(max(count, fewest), most)
        return state.counts[step.index]


def anchor_cells(grid: Grid, step: int, device: torch.device, again: bool = False) -> Tensor:
    """Ascending indices (A,) of the anchors of one frame: every ``step`` rows and columns, and the last ones.

    Args:
        again: whether the last row and column have anchors of their own even where they have some already.
    """

    def places(side: int) -> Tensor:
        regular = torch.arange(0, side, step, device=device)
        if (side - 1) % step == 0 and not again:
            return regular
        return torch.cat([regular, torch.full((1,), side - 1, device=device)])

    return (places(grid.h)[:, None] * grid.w + places(grid.w)).flatten()


def in_every_frame(cells: Tensor, grid: Grid) -> Tensor:
    """Indices of cells (n, ...) of one frame -> those in every frame of a grid (t * n, ...)."""
    frames = grid.h * grid.w * torch.arange(grid.t, device=cells.device)
    return (frames.view(-1, *[1] * cells.ndim) + cells).flatten(0, 1)


def nearest_cells(source: Grid, target: Grid, device: torch.device) -> Tensor:
    """For each cell of a grid (N,), the cell of another grid that its corner of least indices lies in."""
    axes = zip(source.shape, target.shape, strict=True)
    frame, row, column = (torch.arange(to, device=device) * of // to for of, to in axes)
    return ((frame[:, None, None] * source.h + row[:, None]) * source.w + column).flatten()


def share_above(error: Tensor, threshold: float) -> Tensor:
    """(1,), the share of tokens whose error (1, N) is above this part of the largest, in float32."""
    return (error / error.amax() > threshold).sum(dim=1).float() / error.shape[1]


def comparable(logits: Tensor, how: Features) -> Tensor:
    """What cells are compared by: vectors of unit length (B, N, V) of the guided logits (B, N, V)."""
    if how == "scrambled":
        logits = logits.reshape(len(logits), logits.shape[2], logits.shape[1]).transpose(1, 2)
    return logits / logits.norm(dim=-1, keepdim=True).clamp(min=1e-8)
