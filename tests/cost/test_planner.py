"""From speed-ups to settings, with costs that are known exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from stepvar.core.plan import Plan
from stepvar.cost.costs import Scope
from stepvar.cost.planner import fit
from stepvar.errors import UsageError
from stepvar.methods import METHODS, Dense, FastVAR, Method, Random, SkipLast, StepVAR
from stepvar.methods.compose import Compose
from stepvar.methods.drop_guidance import DropGuidance
from stepvar.methods.pruning import FLOOR
from stepvar.models.infinity import schedule_for
from tests.helpers import make_settings

DEPTH = 8


@dataclass(frozen=True)
class TokenCosts:
    """A device on which time is tokens times branches, and a tenth of the dense time stays."""

    plan: Plan = field(default_factory=lambda: make_settings(schedule_for("1M", 1.0)))
    scope: Scope = "image"

    def seconds(self, method: Method) -> float:
        steps = method.edit(self.plan).steps(1)
        return float(sum(s.rows * method.tokens_at(s, layer, DEPTH) for s in steps for layer in range(DEPTH)))

    def speedup(self, method: Method) -> float:
        dense = self.seconds(Method())
        return 1.1 * dense / (0.1 * dense + self.seconds(method))


@pytest.mark.parametrize("method", [StepVAR(), Random(seed=3), Compose(StepVAR(), DropGuidance(2))], ids=str)
@pytest.mark.parametrize("asked", [1.0, 1.3, 2.0, 3.0, 4.0])
def test_pruning_meets_what_is_asked(method: Method, asked: float) -> None:
    costs = TokenCosts()
    budget = fit(asked, method, costs)
    slowest = costs.speedup(method.stages(costs.plan)[0](0.0))
    if asked >= slowest:
        assert budget.planned == pytest.approx(asked, rel=0.005) and not budget.is_near_only
    assert costs.speedup(budget.method) == budget.planned
    assert (budget.asked, budget.scope) == (asked, "image")


def test_pruning_widens_before_it_keeps_less_than_the_floor() -> None:
    costs = TokenCosts()
    first = costs.plan.schedule.late_scales()
    gentle, wide, extreme = (fit(asked, StepVAR(), costs).method for asked in (1.5, 2.5, 4.5))
    assert isinstance(gentle, StepVAR) and isinstance(wide, StepVAR) and isinstance(extreme, StepVAR)
    assert gentle.last == first and FLOOR < float(gentle.keep) < 1  # type: ignore[arg-type]
    assert wide.last is not None and wide.last > first and float(wide.keep) >= FLOOR  # type: ignore[arg-type]
    assert float(extreme.keep) < FLOOR  # type: ignore[arg-type]
    assert extreme.last == costs.plan.schedule.late_scales(0.95) < len(costs.plan.schedule)


def test_other_settings_stay() -> None:
    fitted = fit(2.0, Random(seed=5, propagate="update"), TokenCosts()).method
    assert isinstance(fitted, Random) and (fitted.seed, fitted.propagate) == (5, "update")
    both = fit(2.0, Compose(DropGuidance(3), StepVAR(structure_weight=1.0)), TokenCosts()).method
    assert isinstance(both, Compose) and both.parts[0] == DropGuidance(3)
    assert isinstance(both.parts[1], StepVAR) and both.parts[1].structure_weight == 1.0


def test_whole_scales_come_as_near_as_they_can() -> None:
    costs = TokenCosts()
    budget = fit(2.0, SkipLast(), costs)
    reachable = [costs.speedup(SkipLast(count)) for count in range(1, len(costs.plan.schedule))]
    assert budget.planned == min(reachable, key=lambda speedup: abs(speedup - 2) / 2)
    assert budget.is_near_only and "the nearest that it can do" in str(budget)
    dropped = fit(1.4, DropGuidance(), costs)
    assert isinstance(dropped.method, DropGuidance) and 1.25 < dropped.planned < 1.6


def test_fastvar_skips_as_few_scales_as_it_must() -> None:
    few, more = (fit(asked, FastVAR(blocks_before=0, blocks_after=0), TokenCosts()).method for asked in (1.5, 2.3))
    assert isinstance(few, FastVAR) and isinstance(more, FastVAR)
    assert (few.skip, more.skip) == (0, 1) and len(few.prune) == 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_asked(name: str) -> None:
    """Stages give methods that serve the plan, and a larger share never costs more."""
    costs = TokenCosts()
    try:
        method = METHODS[name]()
    except UsageError:
        pytest.skip("needs settings")
    for stage in method.stages(costs.plan):
        fitted = [stage(share / 4) for share in range(5)]
        speedups = [costs.speedup(one) for one in fitted]
        assert speedups == sorted(speedups) and all(one.name == name for one in fitted)
    assert bool(method.budgeted) == bool(method.stages(costs.plan))


@pytest.mark.parametrize("asked", [0.5, -1.0, float("nan"), float("inf")])
def test_speedups_that_are_none(asked: float) -> None:
    with pytest.raises(UsageError, match=r"must be at least 1, and with stepvar here at most \d+\.\d\d"):
        fit(asked, StepVAR(), TokenCosts())


@pytest.mark.parametrize("method", [StepVAR(), SkipLast(), FastVAR(), DropGuidance()], ids=str)
def test_impossible_speedups_name_the_largest(method: Method) -> None:
    costs = TokenCosts()
    with pytest.raises(UsageError, match=r"speedup=50: with .* at most (\d+\.\d\d) can be had") as caught:
        fit(50, method, costs)
    largest = float(str(caught.value).split("at most ")[1].split()[0])
    assert fit(largest, method, costs).planned == pytest.approx(largest, rel=0.01)


def test_dense_has_nothing_to_spare() -> None:
    with pytest.raises(UsageError, match="method 'dense' has nothing to spare"):
        fit(2.0, Dense(), TokenCosts())
    with pytest.raises(UsageError, match="keep: the speed-up decides it"):
        StepVAR.for_speedup(2.0, None, keep=0.5)
