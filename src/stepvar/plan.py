"""What a generation is going to do, decided before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stepvar.tokens import Grid, ScaleSchedule


def progress(scales: int) -> tuple[float, ...]:
    """How far along each scale of a schedule is: from 0 for the first to 1 for the last."""
    return tuple(index / max(scales - 1, 1) for index in range(scales))


@dataclass(frozen=True)
class Plan:
    """The settings of one generation, scale by scale; a method may edit them.

    Attributes:
        schedule: the grids, all of them, also those that are not run.
        guidance: one classifier-free guidance scale per grid; 1 turns guidance off at that scale.
        temperature: one temperature per grid, by which logits are divided.
        guidance_at: where the branches are mixed: 0 on the logits, -m in front of the last m - 1 blocks
            (after block ``depth - m``, counted from 0). Several places may be given.
        top_k: classes kept before sampling; 0 keeps all, 1 takes the most likely.
        top_p: probability mass kept before sampling; 0 keeps all.
        scales: how many scales are run; the picture is drawn from the sum so far.
        smooth: for models with a codebook: add soft codes, blends of the codebook, in place of the drawn ones.
            One number per grid says how far along it is (see :func:`progress`), and codes sharpen with it; empty
            adds the drawn codes.
    """

    schedule: ScaleSchedule
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    guidance_at: tuple[int, ...] = (0,)
    top_k: int = 0
    top_p: float = 0.0
    scales: int = -1
    smooth: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scales < 0:
            object.__setattr__(self, "scales", len(self.schedule))
        if not 1 <= self.scales <= len(self.schedule):
            raise ValueError(f"scales={self.scales}: must be between 1 and {len(self.schedule)}")
        for name in ("guidance", "temperature"):
            if len(getattr(self, name)) != len(self.schedule):
                raise ValueError(f"{name}: needs one value for each of the {len(self.schedule)} scales")
        if self.smooth and len(self.smooth) != len(self.schedule):
            raise ValueError(f"smooth: needs no value, or one for each of the {len(self.schedule)} scales")

    @property
    def guided(self) -> bool:
        """Whether any scale that is run needs the unconditional branch."""
        return self.branches(0) == 2

    def branches(self, index: int) -> int:
        """Guidance branches to run at a scale.

        The unconditional branch of a scale is needed if that scale or a later one mixes the branches,
        because a later scale attends to its keys and values.
        """
        return 2 if any(scale != 1.0 for scale in self.guidance[index : self.scales]) else 1

    def steps(self, samples: int) -> Iterator[Step]:
        """The scales to run, for a batch of ``samples`` images."""
        memo: dict[str, Any] = {}
        for index in range(self.scales):
            yield Step(
                index=index,
                grid=self.schedule[index],
                rank=len(self.schedule) - index,
                samples=samples,
                branches=self.branches(index),
                guidance=self.guidance[index],
                temperature=self.temperature[index],
                plan=self,
                memo=memo,
            )


@dataclass(frozen=True)
class Step:
    """One scale of a running generation.

    Attributes:
        index: place in the schedule, from 0.
        grid: the scale's grid.
        rank: place counted from the end of the schedule; 1 is the finest scale.
        samples: number of images B; the rows of a token map are ``branches * samples``.
        branches: 1, or 2 when the unconditional branch runs too.
        guidance, temperature: this scale's values.
        plan: the whole generation.
        selections: indices (R, K) of the tokens that methods kept at this scale, in order; read by the report.
        memo: scratch space of methods that remember something across the scales of one generation.
    """

    index: int
    grid: Grid
    rank: int
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
        """Which rows of a state that holds both branches (conditional rows first) run at this scale."""
        return slice(0, self.rows)

    @property
    def is_last(self) -> bool:
        """Whether no later scale is run."""
        return self.index == self.plan.scales - 1
