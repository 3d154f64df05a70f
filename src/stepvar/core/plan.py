"""What a generation is going to do, known before it starts: its settings, and a plan with one row per pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Literal

from torch import Tensor

from stepvar.core.exchange import Split
from stepvar.core.guidance import UNCONDITIONAL, Combine, branches_for, classifier_free_guidance
from stepvar.core.tokens import Grid, ScaleSchedule

Resampling = Literal["model", "area"]

PAIRS = 8192
"""Attended tokens whose attention takes about as long as the products of one token (6 x width, widths around 1400)."""


@dataclass(frozen=True)
class Settings:
    """The settings of one generation, pass by pass; a method may edit them.

    Attributes:
        schedule: the grids, all of them, also those that are not run.
        guidance: one classifier-free guidance scale per pass (see :mod:`stepvar.core.guidance`).
        temperature: one temperature per pass, by which logits are divided.
        cfg_layers: where the guidance branches are combined: 0 on the logits, -m before the last m - 1 blocks
            (after block ``depth - m``, counted from 0). Several places may be given.
        combine: how the logits of the two branches are combined.
        top_k: classes kept before sampling, one number or one per pass; 0 keeps all, 1 takes the most likely.
        top_p: probability mass kept before sampling; 0 keeps all.
        passes: the passes that are run, ascending; empty: all. The image is decoded from the sum of their codes.
        full_guidance: the one guidance scale that ``guidance`` was spread from; None: one number per pass was given.
        forced: the passes whose codes are given (of an image or a video to go on from) and therefore not sampled.
        resampling: how the accumulated latent is brought to the grid of a pass: as the ``"model"`` does, or by
            ``"area"``, the mean over what a cell covers.
        groups: passes that run through the blocks together, each group ascending and without a gap. They all start
            from the image in front of the first; each sees the keys of those before it.
        asked_guidance: the guidance scales before a method changed them; empty: they are as asked.
        smooth: for models with a codebook: add soft codes, blends of the codebook, in place of the sampled ones.
            One number per pass, the relative scale by which they sharpen; None at a pass, or no number at all, adds
            the sampled codes.
        smooth_filtered: whether soft codes blend only what top-k and top-p keep, with random numbers that follow those
            of the indices (VAR); else they blend the whole codebook, with the numbers that indices are sampled with.
    """

    schedule: ScaleSchedule
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    cfg_layers: tuple[int, ...] = (0,)
    top_k: int | tuple[int, ...] = 0
    top_p: float = 0.0
    passes: tuple[int, ...] = ()
    smooth: tuple[float | None, ...] = ()
    smooth_filtered: bool = True
    combine: Combine = classifier_free_guidance
    full_guidance: float | None = None
    forced: frozenset[int] = frozenset()
    resampling: Resampling = "model"
    groups: tuple[tuple[int, ...], ...] = ()
    asked_guidance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.schedule)
        if not self.passes:
            object.__setattr__(self, "passes", tuple(range(count)))
        if sorted(set(self.passes)) != list(self.passes) or not 0 <= self.passes[0] <= self.passes[-1] < count:
            raise ValueError(f"passes={self.passes}: must ascend between 0 and {count - 1}")
        for name in ("guidance", "temperature"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name}: needs one value for each of the {count} scales")
        if not isinstance(self.top_k, int) and len(self.top_k) != count:
            raise ValueError(f"top_k: needs one value, or one for each of the {count} scales")
        if self.smooth and len(self.smooth) != count:
            raise ValueError(f"smooth: needs no value, or one for each of the {count} scales")

    @property
    def sampled(self) -> tuple[int, ...]:
        """The passes that are run and whose codes are not given; all that are run, if all are given."""
        return tuple(index for index in self.passes if index not in self.forced) or self.passes

    @property
    def scales(self) -> int:
        """How many scales are run in the clip that runs fewest, of those that are sampled."""
        run = {(self.schedule.clip(index), self.schedule.scale(index)) for index in self.sampled}
        return min(sum(clip == own for clip, _ in run) for own in {clip for clip, _ in run})

    @property
    def skipped(self) -> int:
        """How many scales at the end of every clip are not run."""
        return min(self.schedule.scales_from_end(index) for index in self.sampled) - 1

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

    def without_last(self, count: int) -> Settings:
        """The settings without the last ``count`` scales of every clip; forced passes stay, they cost nothing.

        Raises:
            ValueError: if a clip has no more than that.
        """
        if count >= min(self.schedule.scale_counts):
            raise ValueError(f"count={count}: a clip of the schedule has {min(self.schedule.scale_counts)} scales")
        late = self.schedule.scales_from_end
        stays = (index for index in self.passes if late(index) > count or index in self.forced)
        return replace(self, passes=tuple(stays))

    @cached_property
    def clips(self) -> list[tuple[int, ...]]:
        """The passes that are run, clip by clip."""
        return [tuple(own) for _, own in groupby(self.passes, key=self.schedule.clip)]

    @cached_property
    def computed(self) -> tuple[int, ...]:
        """The passes that go through the blocks: all that are sampled, and of the forced ones those that are read."""
        found: set[int] = set()
        for index in reversed(self.passes):
            if index not in self.forced or found.intersection(self.readers[index]):
                found.add(index)
        return tuple(sorted(found))

    @cached_property
    def readers(self) -> dict[int, tuple[int, ...]]:
        """For each pass that is run, the later ones that attend to its keys and values."""
        if self.schedule.kv_scope == "all":
            return {index: self.passes[place + 1 :] for place, index in enumerate(self.passes)}
        readers: dict[int, tuple[int, ...]] = dict.fromkeys(self.passes, ())
        if self.schedule.kv_scope == "clip":
            for clip, following in pairwise(self.clips):
                readers[clip[-1]] = following
        return readers

    @cached_property
    def branches(self) -> dict[int, frozenset[str]]:
        """The guidance branches of each computed pass: its own, and those of later passes that attend to it."""
        found: dict[int, frozenset[str]] = {}
        for index in reversed(self.computed):
            own = frozenset() if index in self.forced else branches_for(self.guidance[index])
            found[index] = own.union(*(found.get(later, ()) for later in self.readers[index]))
        return found

    @property
    def guided(self) -> bool:
        """Whether any pass needs the unconditional branch."""
        return any(UNCONDITIONAL in needed for needed in self.branches.values())


@dataclass(frozen=True)
class Step:
    """One pass of a generation: a row of its plan.

    Attributes:
        index: place in the schedule, from 0.
        grid: the scale's grid.
        clip: the clip that the pass belongs to, from 0.
        scale: the scale within its clip, from 0; repetitions of a scale share it.
        scales_from_end: 1 for the finest scale of its clip, 2 for the one before; repetitions share it.
        samples: number of images B; the rows of a token map are ``branches * samples``.
        branches: 1, or 2 when both guidance branches run.
        first_row: which row of a state that holds both branches, conditional ones first, is the first that runs.
        guidance, temperature, top_k: this pass's values.
        relative_scale: from 0 at the first scale to 1 at the last, where soft codes are added; None: sampled codes.
        forced: whether its codes are given.
        computed: whether it goes through the blocks; a forced pass does so only if a later one attends to it.
        attends_to: the earlier passes whose keys and values it sees beside its own.
        is_read: whether a later pass attends to its keys and values.
        is_context: whether it belongs to a clip that the next one goes on from.
        is_last: whether no later pass is run.
        settings: those of the whole generation.
        tokens: how many tokens run through each block.
        dropped: how many keys and values of each block leave the cache behind the pass.
        keys_per_query: how many keys a token of each block attends to on average; empty: all that are there.
        together: of the first pass of a group, all its passes; else empty.
        split: what one process would run, where two run one guidance branch each; ``branches`` and ``first_row`` then
            are those of this process.
    """

    index: int
    grid: Grid
    clip: int
    scale: int
    scales_from_end: int
    samples: int
    branches: int
    first_row: int
    guidance: float
    temperature: float
    top_k: int
    relative_scale: float | None
    forced: bool
    computed: bool
    attends_to: tuple[int, ...]
    is_read: bool
    is_context: bool
    is_last: bool
    settings: Settings
    tokens: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    keys_per_query: tuple[int, ...] = ()
    together: tuple[Step, ...] = ()
    split: Split | None = None

    @property
    def rows(self) -> int:
        return self.samples * self.branches

    @property
    def row_slice(self) -> slice:
        """Which rows of a state that holds both branches run at this pass."""
        return slice(self.first_row, self.first_row + self.rows)

    @property
    def applies_cfg(self) -> bool:
        """Whether this pass combines two guidance branches."""
        branches = self.branches if self.split is None else self.split.branches
        return branches == 2 and len(branches_for(self.guidance)) == 2

    @property
    def applies_cfg_on_logits(self) -> bool:
        """Whether the logits of the two branches are combined."""
        return self.applies_cfg and 0 in self.settings.cfg_layers

    def cfg_blocks(self, depth: int) -> frozenset[int]:
        """The blocks after which the features of the two branches are combined."""
        layers = self.settings.cfg_layers if self.applies_cfg else ()
        return frozenset(depth + place for place in layers if place < 0)

    @property
    def logit_rows(self) -> int:
        """How many rows the head computes: the first ones, as far as they are needed."""
        return self.rows if self.applies_cfg_on_logits or self.guidance == 0.0 else self.samples

    def guided_logits(self, logits: Callable[[int], Tensor]) -> Tensor:
        """Logits (B, N, ...) with temperature and, where the branches are combined there, guidance.

        Args:
            logits: computes those of the first rows, as many as it is told.
        """
        values = logits(self.logit_rows) / self.temperature
        if self.applies_cfg_on_logits:
            return self.settings.combine(self.every_row(values), self.guidance)
        return self.every_row(values)[-self.samples :] if self.guidance == 0.0 else self.first_rows(values)

    def every_row(self, values: Tensor) -> Tensor:
        """Values (rows, ...) of all branches of the pass, also of one that another process runs: (R, ...)."""
        return values if self.split is None else self.split.every_row(values)

    def first_rows(self, values: Tensor) -> Tensor:
        """Values (rows, ...) of the first branch of the pass, in whichever process it runs: (B, ...)."""
        return values[: self.samples] if self.split is None else self.split.first_rows(values)

    def guided_features(self, features: Tensor) -> Tensor:
        """Features (rows, N, C) of the branches combined, the same for each that runs here."""
        guided = classifier_free_guidance(self.every_row(features), self.guidance)
        return guided.repeat(self.branches, 1, 1)

    @property
    def fewest_tokens(self) -> int:
        """The fewest tokens that run through a block; 0 if the pass is not computed."""
        return min(self.tokens, default=self.grid.size) if self.computed else 0


@dataclass(frozen=True)
class Decision:
    """A choice that a method makes while a generation runs.

    Attributes:
        after: the pass behind which it is made.
        plans: what may follow, by name; up to that pass they all do the same.
    """

    after: int
    plans: Mapping[str, Plan]


@dataclass(frozen=True)
class Plan:
    """A generation resolved: everything that its passes need, known before anything is computed.

    Attributes:
        settings: what it was resolved from, as edited by the method.
        samples: number of images.
        depth: number of blocks of the model.
        steps: the passes that are run, in order; where there is a decision, those of the most costly choice.
        decision: the choice that decides which passes follow; None: all is known.
        choice: the name of what was chosen, of a plan that goes on behind a decision.
    """

    settings: Settings
    samples: int
    depth: int
    steps: tuple[Step, ...]
    decision: Decision | None = None
    choice: str | None = None

    @property
    def schedule(self) -> ScaleSchedule:
        return self.settings.schedule

    @property
    def guided(self) -> bool:
        """Whether any pass runs the unconditional branch."""
        return self.settings.guided

    @property
    def rows(self) -> int:
        """Rows of a state that holds all guidance branches."""
        return self.samples * (1 + self.guided)

    @cached_property
    def computed(self) -> tuple[Step, ...]:
        """The passes that go through the blocks."""
        return tuple(step for step in self.steps if step.computed)

    @cached_property
    def _by_index(self) -> dict[int, Step]:
        return {step.index: step for step in self.steps}

    def with_tokens(self, counts: Mapping[int, int]) -> Plan:
        """The plan in which so many tokens run through every block of some passes, by their index."""
        steps = (
            replace(step, tokens=(counts[step.index],) * self.depth) if step.index in counts else step
            for step in self.steps
        )
        return replace(self, steps=tuple(steps))

    def step(self, index: int) -> Step:
        """The pass at a place of the schedule.

        Raises:
            KeyError: if it is not run.
        """
        return self._by_index[index]

    def attended(self, step: Step) -> tuple[int, ...]:
        """For each block, how many tokens a pass attends to: its own and those of the passes that it reads."""
        if self.schedule.kv_scope == "all":
            return self._attended.get(step.index, step.tokens)
        read = [step.tokens, *(self.step(index).tokens for index in step.attends_to)]
        return tuple(map(sum, zip(*read, strict=True)))

    @cached_property
    def _attended(self) -> dict[int, tuple[int, ...]]:
        """For each computed pass the keys of each block, its own included, before any of them leave the cache."""
        found: dict[int, tuple[int, ...]] = {}
        held = (0,) * self.depth
        for step in self.computed:
            seen = tuple(before + own for before, own in zip(held, step.tokens, strict=True))
            held = tuple(keys - gone for keys, gone in zip(seen, step.dropped or (0,) * self.depth, strict=True))
            found[step.index] = seen
        return found

    @property
    def cache_tokens(self) -> tuple[int, ...]:
        """For each block, how many tokens of keys and values have to be kept at most.

        Of a pass behind which some leave a block, those that stay, or none if no pass follows.
        """
        if self.schedule.kv_scope == "all":
            held = (
                tuple(
                    keys if not gone else (keys - gone) * step.is_read
                    for keys, gone in zip(self.attended(step), step.dropped or (0,) * self.depth, strict=True)
                )
                for step in self.computed
            )
            return tuple(map(max, zip(*held, strict=True)))
        kept = [step.tokens for step in self.computed if step.is_read]
        return tuple(map(max, zip(*kept, strict=True))) if kept else (0,) * self.depth

    @property
    def pass_weights(self) -> dict[int, float]:
        """What each pass takes beside the others, roughly: products by tokens, attention by pairs of tokens."""

        def weight(step: Step) -> float:
            pairs = zip(step.tokens, step.keys_per_query or self.attended(step), strict=True)
            return float(step.rows * sum(count * (PAIRS + seen) for count, seen in pairs))

        return {step.index: weight(step) if step.computed else 0.0 for step in self.steps}
