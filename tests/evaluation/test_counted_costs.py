"""Settings of equal cost, and clocks."""

from __future__ import annotations

import pytest
import torch

from stepvar.core.noise import SeededNoise
from stepvar.errors import UsageError
from stepvar.evaluation.costs import Clock, counted_flops, match_cost, turns
from stepvar.evaluation.noise import SHIFT, CachedNoise, RedrawnNoise
from stepvar.methods import Dense, FastVAR, Method, Random, StepVAR
from stepvar.models.infinity import Infinity
from tests.helpers import WIDE, draw, make_settings, make_text


@pytest.mark.parametrize("method", [Dense(), StepVAR(keep=0.4, last=2), FastVAR((0.5, 0.5), 1, 1, 1)], ids=str)
def test_counts_are_those_of_the_run(tiny_model: Infinity, method: Method) -> None:
    plan = make_settings(WIDE)
    drawn = draw(tiny_model, plan, method, make_text((5,)))
    counted = counted_flops(tiny_model, plan, method, text=5)
    assert counted == drawn.state.flops


def test_matched_methods_cost_what_was_asked(tiny_model: Infinity) -> None:
    plan = make_settings(WIDE)
    dense = counted_flops(tiny_model, plan, Dense(), 5)

    def speedup(method: Method) -> float:
        return dense / counted_flops(tiny_model, plan, method, 5)

    found = match_cost(lambda keep: StepVAR(keep=keep, last=3), speedup, 1.5)
    assert found.speedup == pytest.approx(1.5, abs=0.02) and speedup(found.method) == found.speedup
    other = match_cost(lambda keep: Random(keep=keep, last=3), speedup, 1.5)
    assert other.knob == found.knob  # the same work, so the same share
    assert match_cost(lambda keep: StepVAR(keep=keep, last=1), speedup, 50.0).knob == pytest.approx(0.02, abs=1e-6)
    with pytest.raises(UsageError, match=r"speed-up 1\.0: must be above 1"):
        match_cost(lambda keep: StepVAR(keep=keep), speedup, 1.0)


def test_turns_begin_elsewhere_and_change_direction() -> None:
    orders = [list(turns(5, number)) for number in range(4)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert orders[1] == orders[0][::-1] and orders[2] not in orders[:2]
    assert list(turns(0, 3)) == []


def test_a_clock_gives_the_time_between_its_marks() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(3):
        clock.mark()
    first, second = clock.seconds()
    assert 0 <= first < 1 and 0 <= second < 1


def test_the_noise_floor_redraws_the_last_scales_only() -> None:
    early, late = SeededNoise([3]), SeededNoise([3 + SHIFT])
    cached = CachedNoise(RedrawnNoise.of([3], first=2))
    for scale, wanted in ((1, early), (2, late), (3, late)):
        place: tuple[int, tuple[int, ...], torch.device] = (scale, (1, 4, 2), torch.device("cpu"))
        assert torch.equal(cached.exponential(*place), wanted.exponential(*place))
        assert cached.exponential(*place) is cached.exponential(*place)
        normal = cached.normal(scale, 1, *place[1:])
        assert normal is cached.normal(scale, 1, *place[1:])
        assert torch.equal(normal, wanted.normal(scale, 1, *place[1:])) and normal is cached.normal(
            scale, 1, *place[1:]
        )
