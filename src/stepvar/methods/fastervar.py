"""FasterVAR, also StageVAR: the last scales unconditionally and on random mixtures of tokens (arXiv 2512.16483)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.sampling import weighted_choice
from stepvar.core.stack import ModelInfo, RunBlocks
from stepvar.core.tokens import TokenMap, scatter_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.registry import register
from stepvar.methods.scores import squared_norm

Positions = Literal["drawn", "first"]

INFINITY = (
    0.016776672694393688,
    0.13648282097649195,
    0.21039203774864412,
    0.2502819846292948,
    0.2558836742766729,
    0.1978790404611215,
    0.1570015822784809,
    0.19090034471066883,
)
"""Shares of each eighth of the blocks at 40x40, of Infinity-2B and 8B alike."""

HART = (
    *(0.0187, 0.0234, 0.0442, 0.0988, 0.1585, 0.2075, 0.2318, 0.2366, 0.2532, 0.2700, 0.2933, 0.3277),
    *(0.3595, 0.3940, 0.4001, 0.4096, 0.4173, 0.4268, 0.4255, 0.3918, 0.3482, 0.2754, 0.2678, 0.3102),
)
"""Shares of each block of HART at 64x64."""

STAR = (
    *(0.0151, 0.0275, 0.0694, 0.1035, 0.1709, 0.1859, 0.1748, 0.1644, 0.1538, 0.1555),
    *(0.1653, 0.1820, 0.1931, 0.1901, 0.1762, 0.1616, 0.1493, 0.1383, 0.1399, 0.1189),
    *(0.1062, 0.0876, 0.0722, 0.0603, 0.0503, 0.0421, 0.0354, 0.0291, 0.0238, 0.0197),
)
"""Shares of each block of STAR (depth 30) at 64x64."""

INFINITY_STAR = (0.1,) * 6
"""Shares of each sixth of the blocks of InfinityStar."""


class Span(NamedTuple):
    """Blocks that are projected together.

    Attributes:
        number: counts the spans from 0.
        first, last: the blocks, the last one exclusive.
        share: of the tokens, how many they run on.
    """

    number: int
    first: int
    last: int
    share: float


@dataclass
class FasterVARState(MethodState):
    """What FasterVAR keeps during a generation.

    Attributes:
        sources: the passes whose features fill the projected one.
        cached: what each span of blocks left at the last of these, by its first block.
    """

    sources: frozenset[int] = frozenset()
    cached: dict[int, CachedFeatures] = field(default_factory=dict)


@register
@dataclass(frozen=True)
class FasterVAR(Method[FasterVARState]):
    """Skips scales, runs the last ones unconditionally, and the very last one on random mixtures of its tokens.

    At the last scale that is run, in front of each span of blocks, r of its N tokens x are drawn with a probability in
    proportion to their squared norm; the blocks run on r random mixtures of all tokens, ``Q^T x`` with Q normal and
    divided by the root of r (a random projection), and what they make of them takes the places that were drawn. The
    other places take what the same blocks left at the scale before, resized by area. Random numbers follow from the
    seed of the image, and both guidance branches share them. Of videos only the last clip is run like this: what is
    saved in a clip that the next one goes on from, the next one repeats.

    The published tables are presets: ``infinity`` (the default; Infinity-2B and 8B at 1024x1024, which skip 48x48 and
    64x64), ``hart``, ``star`` and ``infinity-star``. The released code of Infinity and InfinityStar gives the mixtures
    the positions of the first r tokens, the uppermost rows of the image, where that of HART and STAR gives them those
    that were drawn. Here the latter is the rule everywhere; ``infinity-released`` and ``infinity-star-released`` are as
    released. ``no-projection`` computes all tokens of what is left: what the projection has to be compared with.

    Attributes:
        unconditional: how many scales, counted from the end, run the unconditional branch alone; scales that are not
            run count. 0: guidance stays.
        skip: how many scales at the end are not run.
        shares: how many tokens the blocks run on at the last scale that is run, as shares, one for each of as many
            equally long spans of blocks; a model of fewer blocks takes the means of neighbours. Empty: all tokens.
        rank_limit: shares are of the number of tokens, but at most of this one; None: no limit. The tables of HART and
            STAR are shares of the smaller of tokens and channels.
        positions: those of the mixtures are the ``"drawn"`` ones, in order, or the ``"first"`` of the scale.
    """

    name: ClassVar[str] = "fastervar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "infinity": {"unconditional": 3, "skip": 2, "shares": INFINITY},
        "infinity-released": {"unconditional": 3, "skip": 2, "shares": INFINITY, "positions": "first"},
        "hart": {"unconditional": 2, "skip": 0, "shares": HART, "rank_limit": 1536},
        "star": {"unconditional": 2, "skip": 0, "shares": STAR, "rank_limit": 1920},
        "infinity-star": {"unconditional": 3, "skip": 0, "shares": INFINITY_STAR},
        "infinity-star-released": {"unconditional": 3, "skip": 0, "shares": INFINITY_STAR, "positions": "first"},
        "no-projection": {"shares": ()},
    }
    neutral: ClassVar[Mapping[str, Any] | None] = {"unconditional": 0, "skip": 0, "shares": ()}
    speedup_settings: ClassVar[tuple[str, ...]] = ("shares", "skip", "unconditional")

    unconditional: Annotated[int, Range(0, 1000)] = 3
    skip: Annotated[int, Range(0, 1000)] = 2
    shares: Annotated[Sequence[float], Range(least=0, below=1)] = INFINITY
    rank_limit: Annotated[int | None, Range(1, 1_000_000, none="for no limit")] = None
    positions: Positions = "drawn"

    def edit(self, settings: Settings) -> Settings:
        schedule = settings.schedule
        scales, needed = min(schedule.scale_counts), self.skip + 1 + bool(self.shares)
        if scales < needed:
            run = "and one in front of the one that is projected" if self.shares else "and run one"
            raise UsageError(f"skip={self.skip}: needs {needed} scales to skip these {run}; the schedule has {scales}")
        if self.unconditional >= scales:
            raise UsageError(f"unconditional={self.unconditional}: the schedule has {scales} scales; give fewer")
        if self.unconditional and settings.guided:
            clip = schedule.clip(len(schedule) - 1)
            guidance = (
                0.0 if schedule.scales_from_end(index) <= self.unconditional and schedule.clip(index) == clip else scale
                for index, scale in enumerate(settings.guidance)
            )
            settings = replace(settings, guidance=tuple(guidance))
        return settings.without_last(max(self.skip, settings.skipped))

    def check(self, plan: Plan, info: ModelInfo) -> None:
        skipped = plan.settings.skipped
        if 0 < self.unconditional <= skipped:
            raise UsageError(
                f"unconditional={self.unconditional}: the last {skipped} scales are not run; "
                f"give at least {skipped + 1}, or 0 to keep guidance"
            )
        self.sources(plan)

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """Shares from nearly all tokens down to half of the given ones, nothing skipped; then with more skipped."""
        most = min(settings.schedule.scale_counts) - 2
        if not self.shares:
            return [lambda share: self._skipping(round(share * max(0, most)), ())]
        largest = 0.999 / max(max(self.shares), 1e-3)

        def stage(skip: int) -> Stage:
            return lambda share: self._skipping(
                skip, tuple(round(own * (largest - share * (largest - 0.5)), 6) for own in self.shares)
            )

        return [stage(skip) for skip in range(max(0, most))]

    def _skipping(self, skip: int, shares: tuple[float, ...]) -> FasterVAR:
        alone = max(self.unconditional, skip + 1) if self.unconditional else 0
        return replace(self, skip=skip, shares=shares, unconditional=alone)

    # What runs.

    def is_projected(self, step: Step) -> bool:
        """Whether the blocks run on mixtures at a pass: the last scale that is run, in the last clip."""
        return bool(self.shares) and not step.is_context and step.scales_from_end == step.settings.skipped + 1

    def spans(self, depth: int) -> list[Span]:
        """The spans of blocks that are projected one after the other."""
        count, given = min(depth, len(self.shares)), len(self.shares)
        groups = [self.shares[place * given // count : (place + 1) * given // count] for place in range(count)]
        starts = [place * depth // count for place in range(count + 1)]
        return [
            Span(place, starts[place], starts[place + 1], sum(group) / len(group)) for place, group in enumerate(groups)
        ]

    def rank(self, step: Step, share: float) -> int:
        """How many mixtures there are of the tokens of a pass."""
        size = step.grid.size
        return int(share * (size if self.rank_limit is None else min(size, self.rank_limit))) + 1

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        if not self.is_projected(step):
            return step.grid.size
        return next(self.rank(step, span.share) for span in self.spans(depth) if layer < span.last)

    def sources(self, plan: Plan) -> frozenset[int]:
        """The passes that projected ones are filled from: the last one in front of them in their clip.

        Raises:
            UsageError: if there is none.
        """
        found: set[int] = set()
        dense: dict[int, int] = {}
        for step in plan.computed:
            if not self.is_projected(step):
                dense[step.clip] = step.index
            elif step.clip in dense:
                found.add(dense[step.clip])
            else:
                raise UsageError(f"shares: the scale {step.grid} is the first that is run; give () or skip fewer")
        return frozenset(found)

    # What happens at a pass.

    def start(self, plan: Plan) -> FasterVARState:
        return FasterVARState(sources=self.sources(plan))

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: FasterVARState) -> TokenMap:
        if self.is_projected(step):
            for span in self.spans(run.depth):
                tokens = self.run_projected(run, run.enter(tokens, span.first), span, step, state)
            return tokens
        if step.index not in state.sources:
            return run(tokens)
        for span in self.spans(run.depth):
            tokens = run(tokens, span.first, span.last)
            state.cached[span.first] = CachedFeatures.of(tokens, step)
        return tokens

    def run_projected(
        self, run: RunBlocks, tokens: TokenMap, span: Span, step: Step, state: FasterVARState
    ) -> TokenMap:
        """A dense map behind a span of blocks, which runs on mixtures of the dense map in front of it."""
        features, rank = tokens.features, self.rank(step, span.share)
        weights = step.first_rows(squared_norm(features[: step.samples]))
        places, mixing = self.draw(weights, rank, span, step, state)
        state.record(step, places.sort(dim=1).values)
        places, mixing = places.repeat(step.branches, 1), mixing.repeat(step.branches, 1, 1)
        mixed = (mixing.transpose(1, 2) @ features.float()).to(features.dtype)
        first = torch.arange(rank, device=places.device).expand_as(places)
        positions = places if self.positions == "drawn" else first
        after = run(TokenMap(mixed, positions, tokens.grid), span.first, span.last).features
        filled = state.cached[span.first].at(step, len(after), "area")
        return tokens.with_features(scatter_tokens(filled, places, after))

    def draw(self, weights: Tensor, rank: int, span: Span, step: Step, state: FasterVARState) -> tuple[Tensor, Tensor]:
        """The places (B, r) that are drawn by weights (B, N), and the matrix of the mixtures (B, N, r) in float32.

        Mixtures are alike, so that the places of those with positions of their own may be put in order.
        """
        assert state.noise is not None  # handed over before the first pass
        name, device = f"{self.name}/{span.number}", weights.device
        race = state.noise.exponential(step.index, weights.shape, device, name)
        places = weighted_choice(weights, race, rank)
        mixing = state.noise.normal(step.index, name, (*weights.shape, rank), device) * rank**-0.5
        return (places.sort(dim=1).values if self.positions == "drawn" else places), mixing
