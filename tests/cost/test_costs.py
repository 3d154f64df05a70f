"""Times from counts and rates, and how a measured profile scales them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stepvar.cost.costs import CostModel
from stepvar.cost.device import DeviceRates
from stepvar.cost.profile import Profile, thinning
from stepvar.methods import FastVAR, Method, SkipLast, StepVAR
from stepvar.methods.compose import Compose
from stepvar.methods.drop_guidance import DropGuidance
from stepvar.models.blocks import tokens_seen
from stepvar.models.work import Work
from tests.helpers import SQUARE, WIDE, make_model, make_settings, make_var

RATES = DeviceRates(products=((1, 1e9), (64, 4e9)), attention=2e9, bandwidth=1e10, launch=1e-6)


def costs_of(kind: str, **settings: Any) -> CostModel:
    model, schedule = (make_model(), WIDE) if kind == "infinity" else (make_var(), SQUARE)
    return CostModel(model, make_settings(schedule), 1, RATES, **settings)


def profile_of(costs: CostModel, power: float = 1.0, fixed: float = 0.0) -> Profile:
    """What would be measured on a device of these rates, whose blocks follow the counts to a power."""
    dense, thinned = costs.scales(Method()), costs.scales(thinning(costs.plan))
    stack = {index: scale.stack for index, scale in dense.items()}
    thin = {index: stack[index] * (thinned[index].stack / dense[index].stack) ** power for index in stack}
    return Profile(stack, thin, {index: scale.rest for index, scale in dense.items()}, fixed, fixed, fixed)


def test_time_by_hand() -> None:
    work = Work(rows=1, products=2_000_000_000, attention=1_000_000_000, moved=2_500_000_000, launches=1000)
    assert RATES.seconds([work]) == pytest.approx(2 + 0.5 + 1 + 0.001)
    assert replace(RATES, queued=True).seconds([work]) == pytest.approx(3.5)
    assert replace(RATES, queued=True, launch=1.0).seconds([work]) == pytest.approx(1000)
    assert RATES.product_rate(8) == pytest.approx(2e9)  # half-way by logarithms
    assert (RATES.product_rate(1), RATES.product_rate(10**6)) == pytest.approx((1e9, 4e9))


@pytest.mark.parametrize("kind", ["infinity", "var"])
@pytest.mark.parametrize("profiled", [False, True])
def test_fewer_tokens_never_cost_more(kind: str, profiled: bool) -> None:
    costs = costs_of(kind)
    if profiled:
        costs = replace(costs, profile=profile_of(costs, power=0.8, fixed=0.001))
    for last in (1, 2, 3):
        seconds = [costs.seconds(StepVAR(keep=keep / 20, last=last)) for keep in range(1, 21)]
        assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
    assert costs.speedup(Method()) == 1
    assert costs.seconds(SkipLast(2)) < costs.seconds(SkipLast(1)) < costs.dense_seconds
    assert costs.seconds(DropGuidance(2)) < costs.seconds(DropGuidance(1)) < costs.dense_seconds
    both = Compose(StepVAR(keep=0.5), DropGuidance(1))
    assert costs.seconds(both) < min(costs.seconds(StepVAR(keep=0.5)), costs.seconds(DropGuidance(1)))


def test_a_profile_scales_and_stretches_the_rates() -> None:
    plain = costs_of("infinity")
    scaled = replace(plain, profile=profile_of(plain))
    method = StepVAR(keep=0.4, last=2)
    assert scaled.seconds(method) == pytest.approx(plain.seconds(method))
    slower = replace(profile_of(plain), stack={index: 3.0 for index in range(len(WIDE))})
    dense = replace(plain, profile=slower).scales(Method())
    assert [scale.stack for scale in dense.values()] == pytest.approx([3.0] * len(WIDE))
    stretched = replace(plain, profile=profile_of(plain, power=0.7))
    sparse = thinning(plain.plan)
    for index, scale in stretched.scales(sparse).items():
        assert scale.stack == pytest.approx(stretched.profile.thinned[index])  # type: ignore[union-attr]
    assert stretched.speedup(method) < scaled.speedup(method)


def test_what_stays_counts_only_towards_an_image() -> None:
    plain = costs_of("infinity")
    fixed = plain.dense_seconds * 10
    image = replace(plain, profile=profile_of(plain, fixed=fixed))
    scales = replace(image, scope="scales")
    method = StepVAR(keep=0.3)
    assert image.dense_seconds == pytest.approx(scales.dense_seconds + 3 * fixed)
    assert 1 < image.speedup(method) < scales.speedup(method)


def test_time_to_start_operations_is_taken_from_passes_of_few_tokens() -> None:
    plain = costs_of("infinity")
    slow = replace(RATES, launch=50e-6)
    measured = profile_of(replace(plain, rates=slow))
    assert replace(plain, profile=measured).fitted_rates.launch == pytest.approx(slow.launch, rel=1e-6)


def test_a_method_pays_for_itself() -> None:
    costs = costs_of("infinity")
    work = costs.works(FastVAR((0.5,), 0, 1, 1))
    own = [FastVAR((0.5,), 0, 1, 1).extra_passes(step, costs.model.info) for step, _ in work]
    assert own[-1] == 12 * 2 * 3 and not any(own[:-1])


def test_tokens_seen_follow_what_passes_read() -> None:
    plan = make_settings(SQUARE)
    assert tokens_seen(plan, 2, {0: [1, 1], 1: [4, 2], 2: [16, 8]}) == [21, 11]
    clips = replace(SQUARE, clips=(0, 0, 0, 1, 1), scales=(0, 1, 2, 0, 1), kv_scope="clip")
    assert tokens_seen(make_settings(clips), 4, {0: [1], 1: [4], 2: [16], 3: [36], 4: [64]}) == [16 + 64]
