"""What a generation is going to do, decided before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

from torch import Tensor

from stepvar.core.sampling import classifier_free_guidance
from stepvar.core.tokens import Grid, ScaleSchedule

Mix = Callable[[Tensor, float], Tensor]
"""From values (2B, ...) of both branches, conditional first, and the guidance scale to the guided ones (B, ...)."""


CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
BOTH = frozenset((CONDITIONAL, UNCONDITIONAL))
ALONE = {1.0: frozenset((CONDITIONAL,)), 0.0: frozenset((UNCONDITIONAL,))}
"""The guidance scales that draw from one branch alone."""


def progress(scales: int) -> tuple[float, ...]:
    """How far along each scale of a schedule is: from 0 for the first to 1 for the last."""
    return tuple(index / max(scales - 1, 1) for index in range(scales))


@dataclass(frozen=True)
class Plan:
    """The settings of one generation, pass by pass; a method may edit them.

    Attributes:
        schedule: the grids, all of them, also those that are not run.
        guidance: one classifier-free guidance scale per pass; 1 turns guidance off there: the conditional branch alone
            is drawn from. 0 draws from the unconditional one alone.
        temperature: one temperature per pass, by which logits are divided.
        cfg_layers: where the branches are mixed: 0 on the logits, -m in front of the last m - 1 blocks
            (after block ``depth - m``, counted from 0). Several places may be given.
        mix: how the logits of the two branches are mixed.
        top_k: classes kept before sampling, one number or one per grid; 0 keeps all, 1 takes the most likely.
        top_p: probability mass kept before sampling; 0 keeps all.
        passes: the passes that are run, ascending; empty: all. The picture is drawn from the sum of their codes.
        given: symbols (B, N, ...) of passes that are not drawn, because a picture or a video says what they are.
        smooth: for models with a codebook: add soft codes, blends of the codebook, in place of the drawn ones.
            One number per pass says how far along it is (see :func:`progress`), and codes sharpen with it; empty
            adds the drawn codes.
    """

    schedule: ScaleSchedule
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    cfg_layers: tuple[int, ...] = (0,)
    top_k: int | tuple[int, ...] = 0
    top_p: float = 0.0
    passes: tuple[int, ...] = ()
    smooth: tuple[float, ...] = ()
    mix: Mix = classifier_free_guidance
    given: Mapping[int, Tensor] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        count = len(self.schedule)
        if not self.passes:
            object.__setattr__(self, "passes", tuple(range(count)))
        if sorted(set(self.passes)) != list(self.passes) or not 0 <= self.passes[0] <= self.passes[-1] < count:
            raise ValueError(f"passes={self.passes}: must ascend between 0 and {count - 1}")
        for name in ("guidance", "temperature"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name}: needs one value for each of the {count} scales")
        if not isinstance(self.top_k, int) and len(self.top_k) != len(self.schedule):
            raise ValueError(f"top_k: needs one value, or one for each of the {len(self.schedule)} scales")
        if self.smooth and len(self.smooth) != count:
            raise ValueError(f"smooth: needs no value, or one for each of the {count} scales")

    @property
    def scales(self) -> int:
        """How many scales are run in the clip that runs fewest, of those that are drawn."""
        ranks = {(self.schedule.clip(index), self.schedule.scale(index)) for index in self.drawn}
        return min(sum(clip == own for clip, _ in ranks) for own in {clip for clip, _ in ranks})

    @property
    def skipped(self) -> int:
        """How many scales at the end of every clip are not run."""
        return min(self.schedule.scales_from_end(index) for index in self.drawn) - 1

    @property
    def drawn(self) -> tuple[int, ...]:
        """The passes that are run and whose symbols are not given; all that are run, if all are given."""
        return tuple(index for index in self.passes if index not in self.given) or self.passes

    def late_scales(self, share: float = 0.5) -> int:
        """How many scales, counted from the end of a clip, hold more than a share of what is run of the last clip.

        Scales that are not run count, as they do wherever scales are counted from the end.
        """
        return self.skipped + self._run.late_scales(share)

    @cached_property
    def _run(self) -> ScaleSchedule:
        """The part of the schedule that is run."""
        return replace(
            self.schedule,
            grids=tuple(self.schedule[index] for index in self.passes),
            clips=tuple(self.schedule.clip(index) for index in self.passes),
            scales=tuple(self.schedule.scale(index) for index in self.passes),
        )

    def without_last(self, count: int) -> Plan:
        """The plan without the last ``count`` scales of the schedule, in every clip; what is given stays, it is free.

        Raises:
            ValueError: if a clip has no more than that.
        """
        if count >= min(self.schedule.scale_counts):
            raise ValueError(f"count={count}: a clip of the schedule has {min(self.schedule.scale_counts)} scales")
        stays = (index for index in self.passes if self.schedule.scales_from_end(index) > count or index in self.given)
        return replace(self, passes=tuple(stays))

    @property
    def guided(self) -> bool:
        """Whether any scale that is run needs the unconditional branch."""
        return any(UNCONDITIONAL in needed for needed in self._needed.values())

    def branches(self, index: int) -> int:
        """Guidance branches to run at a pass.

        A pass needs the branches that it draws from, and those that a later one which attends to its keys and values
        needs.
        """
        return len(self._needed.get(index, ALONE[1.0]))

    def is_unconditional(self, index: int) -> bool:
        """Whether a pass runs the unconditional branch alone."""
        return self._needed.get(index) == ALONE[0.0]

    @cached_property
    def readers(self) -> dict[int, tuple[int, ...]]:
        """For each pass that is run, the later ones that attend to its keys and values."""
        if self.schedule.kv_scope == "all":
            return {index: self.passes[place + 1 :] for place, index in enumerate(self.passes)}
        readers: dict[int, tuple[int, ...]] = dict.fromkeys(self.passes, ())
        for clip, following in pairwise(self.clips_run):
            readers[clip[-1]] = following
        return readers

    @cached_property
    def computed(self) -> tuple[int, ...]:
        """The passes that go through the blocks: all that are drawn, and of the given ones those that are read."""
        found: set[int] = set()
        for index in reversed(self.passes):
            if index not in self.given or found.intersection(self.readers[index]):
                found.add(index)
        return tuple(sorted(found))

    @cached_property
    def _needed(self) -> dict[int, frozenset[str]]:
        found: dict[int, frozenset[str]] = {}
        for index in reversed(self.computed):
            own = frozenset() if index in self.given else ALONE.get(self.guidance[index], BOTH)
            found[index] = own.union(*(found.get(later, ()) for later in self.readers[index]))
        return found

    @cached_property
    def clips_run(self) -> list[tuple[int, ...]]:
        """The passes that are run, clip by clip."""
        return [tuple(own) for _, own in groupby(self.passes, key=self.schedule.clip)]

    def steps(self, samples: int) -> Iterator[Step]:
        """The passes to run, for a batch of ``samples`` images."""
        memo: dict[str, Any] = {}
        for index in self.passes:
            yield Step(
                index=index,
                grid=self.schedule[index],
                scales_from_end=self.schedule.scales_from_end(index),
                samples=samples,
                branches=self.branches(index),
                guidance=self.guidance[index],
                temperature=self.temperature[index],
                plan=self,
                memo=memo,
            )


@dataclass(frozen=True)
class Step:
    """One pass of a running generation.

    Attributes:
        index: place in the schedule, from 0.
        grid: the scale's grid.
        scales_from_end: 1 for the finest scale of its clip, 2 for the one before; repetitions share it.
        samples: number of images B; the rows of a token map are ``branches * samples``.
        branches: 1, or 2 when both guidance branches run.
        guidance, temperature: this pass's values.
        plan: the whole generation.
        selections: indices (R, K) of the tokens that methods kept at this pass, in order; read by the report.
        memo: scratch space of methods that remember something across the passes of one generation.
    """

    index: int
    grid: Grid
    scales_from_end: int
    samples: int
    branches: int
    guidance: float
    temperature: float
    plan: Plan
    selections: list[Tensor] = field(default_factory=list)
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.samples * self.branches

    @property
    def row_slice(self) -> slice:
        """Which rows of a state that holds both branches (conditional rows first) run at this pass."""
        first = self.samples if self.plan.is_unconditional(self.index) else 0
        return slice(first, first + self.rows)

    @property
    def applies_cfg(self) -> bool:
        """Whether this pass draws from a mixture of the branches."""
        return self.branches == 2 and self.guidance not in ALONE

    @property
    def clip(self) -> int:
        """The clip that this pass belongs to, from 0."""
        return self.plan.schedule.clip(self.index)

    @property
    def scale(self) -> int:
        """The scale within its clip, from 0; repetitions share it."""
        return self.plan.schedule.scale(self.index)

    @property
    def is_context(self) -> bool:
        """Whether this pass belongs to a clip that the next one goes on from."""
        return self.plan.schedule.kv_scope == "clip" and self.index not in self.plan.clips_run[-1]

    @property
    def given(self) -> Tensor | None:
        """The symbols of this pass, where they are not drawn."""
        return self.plan.given.get(self.index)

    @property
    def computed(self) -> bool:
        """Whether this pass goes through the blocks: a given one does so only if a later one attends to it."""
        return self.index in self.plan.computed

    @property
    def is_read(self) -> bool:
        """Whether a later pass attends to the keys and values of this one."""
        return not set(self.plan.computed).isdisjoint(self.plan.readers[self.index])

    @property
    def top_k(self) -> int:
        """Classes kept before sampling at this scale."""
        top_k = self.plan.top_k
        return top_k if isinstance(top_k, int) else top_k[self.index]

    @property
    def is_last(self) -> bool:
        """Whether no later pass is run."""
        return self.index == self.plan.passes[-1]
