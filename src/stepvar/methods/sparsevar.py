"""SparseVAR: frequency-aware exclusion of tokens (Chen et al., ICCV 2025; arXiv 2507.20454)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.stack import ModelInfo, RunBlocks
from stepvar.core.tokens import TokenMap, gather_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.latent_delta import refuse_first_scale
from stepvar.methods.pruning import Pruning, PruningState
from stepvar.methods.registry import register
from stepvar.methods.restoration import Restoration, RestorationName, nearest_kept


@dataclass
class SparseVARState(PruningState):
    """What SparseVAR keeps during a generation.

    Attributes:
        block_error: how much the measuring block changed each token at the pass before, (R, N, 1).
    """

    block_error: CachedFeatures | None = None


@register
@dataclass(frozen=True)
class SparseVAR(Pruning[SparseVARState]):
    """Excludes the tokens that one block changed least at the scale before; uniform anchors stay and fill them in.

    No code was released. Known from the abstract and the method figure in the authors' repository: tokens of low
    frequency are found by a mean squared error, between the features in front of one block and behind it at scale
    k - 1, interpolated to the grid of scale k; those that score low leave in front of the first block of scale k; a
    small set of uniformly sampled anchors preserves the excluded regions. Our reading of what is not said there:

    - the block is the middle one (the paper: blocks focus on distinct regions, some on high frequencies);
    - how many tokens stay follows from ``keep``, so that shapes are static, where the paper excludes dynamically;
    - an anchor is the middle of each 4x4 cells; an excluded token takes the state of its nearest anchor behind the
      last block (``restore`` and ``propagate`` say otherwise);
    - where scale k - 1 was pruned itself, an excluded token there counts as changed like its nearest kept one;
    - errors are interpolated linearly, and those of the conditional branch decide for both.

    Attributes:
        block: index of the block that measures; None: the middle one.
    """

    name: ClassVar[str] = "sparsevar"

    restore: RestorationName | Restoration = "anchors"
    block: Annotated[int | None, Range(0, 1000, none="for the middle one")] = None

    def check(self, plan: Plan, info: ModelInfo) -> None:
        super().check(plan, info)
        if self.block is not None and self.block >= info.depth:
            raise UsageError(f"block={self.block}: the model has {info.depth} blocks; give less")
        refuse_first_scale(self, plan)

    def start(self, plan: Plan) -> SparseVARState:
        return SparseVARState(sources=self.sources(plan))

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: SparseVARState) -> TokenMap:
        watched = WatchedBlocks(run, run.depth // 2 if self.block is None else self.block)
        tokens = super().run_stack(watched, tokens, step, state)
        before, after = watched.seen
        error = (after.features.float() - before.features.float()).square().mean(dim=-1, keepdim=True)
        if not after.is_dense:
            error = gather_tokens(error, nearest_kept(after.positions, after.grid, self.temporal_weight))
        state.block_error = CachedFeatures.of(after.with_features(error), step)
        return tokens

    def score(self, tokens: TokenMap, step: Step, state: SparseVARState) -> Tensor:
        assert state.block_error is not None  # the first scale of a clip is refused
        return state.block_error.at(step, len(tokens.features), "trilinear").squeeze(-1)


@dataclass
class WatchedBlocks:
    """Blocks of which one is watched.

    Attributes:
        run: the blocks.
        block: index of the one.
        seen: the maps in front of it and behind it, once it has run.
    """

    run: RunBlocks
    block: int
    seen: tuple[TokenMap, TokenMap] = field(init=False)

    @property
    def depth(self) -> int:
        return self.run.depth

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return self.run.enter(tokens, first)

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        last = self.depth if last is None else last
        if not first <= self.block < last:
            return self.run(tokens, first, last)
        before = self.run(tokens, first, self.block)
        after = self.run(before, self.block, self.block + 1)
        self.seen = (before, after)
        return self.run(after, self.block + 1, last)
