"""What a generation with a method will take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from typing import Any, Literal

from stepvar.core.plan import Plan, Step
from stepvar.cost.device import DeviceRates
from stepvar.cost.profile import Profile, thinning
from stepvar.methods.base import Method
from stepvar.models.blocks import planned_works
from stepvar.models.work import ScaleWork

Scope = Literal["image", "scales"]

NOT_THINNED = 0.9
"""A pass whose thinned time is above this share of the dense one says nothing about thinning."""
LEAST = 0.5
"""A measured ratio is believed within this power of the ratio by rates, and its inverse: a machine may be disturbed."""

TEXT_TOKENS = 32
"""Of a usual prompt; what attention to the text costs hardly shows beside the rest."""


@dataclass(frozen=True)
class ScaleSeconds:
    """Estimated time of one pass: its blocks with what the method adds, and everything else."""

    stack: float
    rest: float

    @property
    def total(self) -> float:
        return self.stack + self.rest


@dataclass(frozen=True)
class CostModel:
    """Times from operation counts and a device's rates, brought to the scale of a measured dense generation.

    The blocks of a pass take their measured dense time times a ratio: that of what their work with the method and
    their dense work take by the device's rates. How the ratio is stretched is measured too, on one thinned generation;
    so the rates only say what lies between dense and thinned, and beyond.

    Attributes:
        model: a :class:`~stepvar.models.base.CountedModel` with a configuration.
        plan: of the dense generation.
        samples: pictures drawn at once.
        rates: of the device.
        profile: the measured generation; None: by the rates alone, without text and decoding.
        scope: what the speed-up is of: a whole ``"image"``, from prompt to pixels, or the loop over ``"scales"``.
    """

    model: Any
    plan: Plan
    samples: int
    rates: DeviceRates
    profile: Profile | None = None
    scope: Scope = "image"

    def seconds(self, method: Method) -> float:
        """What the speed-up is of, in full."""
        return self.fixed + sum(scale.total for scale in self.scales(method).values())

    @property
    def fixed(self) -> float:
        """What no method changes."""
        profile = self.profile
        if profile is None or self.scope == "scales":
            return 0.0
        return profile.condition + profile.prepare + profile.decode

    def speedup(self, method: Method) -> float:
        return self.dense_seconds / self.seconds(method)

    @cached_property
    def dense_seconds(self) -> float:
        return self.seconds(Method())

    def scales(self, method: Method) -> dict[int, ScaleSeconds]:
        """By pass that goes through the blocks."""
        costs = self._by_rates(method)
        if self.profile is None:
            return costs
        dense, profile, stretch = self._dense_by_rates, self.profile, self._stretch
        return {
            index: ScaleSeconds(
                profile.stack[index] * (cost.stack / dense[index].stack) ** stretch[index],
                profile.rest[index] * cost.rest / dense[index].rest,
            )
            for index, cost in costs.items()
        }

    @cached_property
    def _stretch(self) -> dict[int, float]:
        """By pass, the power of a ratio by rates that is the measured ratio; 1 where nothing was thinned."""
        assert self.profile is not None  # nothing else asks for it
        thinned, found = self._by_rates(thinning(self.plan)), {}
        for index, dense in self._dense_by_rates.items():
            expected = thinned[index].stack / dense.stack
            measured = self.profile.thinned[index] / self.profile.stack[index]
            known = expected < NOT_THINNED and measured < 1
            found[index] = min(max(log(measured) / log(expected), LEAST), 1 / LEAST) if known else 1.0
        return found

    @cached_property
    def _dense_by_rates(self) -> dict[int, ScaleSeconds]:
        return self._by_rates(Method())

    def _by_rates(self, method: Method) -> dict[int, ScaleSeconds]:
        found, info, rates = {}, self.model.info, self.fitted_rates
        for step, work in self.works(method):
            passes = method.extra_passes(step, info) * step.rows * step.grid.size * self.model.config.width
            found[step.index] = ScaleSeconds(rates.seconds(work.stack, passes), rates.seconds(work.rest))
        return found

    @cached_property
    def fitted_rates(self) -> DeviceRates:
        """The device's, with the time to start an operation inside this model, which no pruning saves.

        It is what the passes of few tokens need beyond their work: the least that any pass leaves unexplained.
        """
        if self.profile is None:
            return self.rates
        free = replace(self.rates, launch=0.0)
        unexplained = [
            (self.profile.stack[step.index] - (0 if free.queued else free.seconds(work.stack)))
            / sum(part.launches for part in work.stack)
            for step, work in self.works(Method())
        ]
        return replace(self.rates, launch=max(self.rates.launch, min(unexplained)))

    def works(self, method: Method) -> list[tuple[Step, ScaleWork]]:
        """The work of every pass that goes through the blocks."""
        plan = method.prepare(self.plan, self.model.info)
        return planned_works(self.model, plan, method, self.samples, TEXT_TOKENS)
