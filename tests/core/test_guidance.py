"""Classifier-free guidance: its schedules, the rows that it needs, and where it is applied."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stepvar.core.arguments import SamplingArguments, make_noise
from stepvar.core.guidance import (
    GUIDANCE_SCHEDULES,
    GUIDANCE_TYPES,
    branches_for,
    classifier_free_guidance,
    constant,
    guidance_per_pass,
    hold_last,
    linear,
    linear_hold,
    relative_scales,
)
from stepvar.core.plan import Step
from stepvar.core.resolve import resolve
from stepvar.errors import UsageError
from tests.helpers import SQUARE, make_settings

# From one number to one per pass


def test_schedules_spread_one_number() -> None:
    assert constant(4.0, 3) == (4.0, 4.0, 4.0)
    assert linear(4.0, 4) == (1.0, 2.0, 3.0, 4.0)
    assert linear_hold(5.0, 5) == (1.0, 2.0, 3.0, 4.0, 4.0)
    assert list(GUIDANCE_SCHEDULES) == ["constant", "linear", "linear-hold", "linear-window", "linear-late-window"]


@pytest.mark.parametrize("name", GUIDANCE_SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 10])
def test_one_is_off_in_every_schedule(name: str, count: int) -> None:
    assert GUIDANCE_SCHEDULES[name](1.0, count) == (1.0,) * count
    assert branches_for(1.0) == {"conditional"}


def test_schedules_of_one_scale() -> None:
    assert linear(5.0, 1) == linear_hold(5.0, 1) == (1.0,)  # the first scale, where a ramp is off
    assert hold_last((3.0,)) == (3.0,)


def test_relative_scales_run_from_zero_to_one() -> None:
    assert relative_scales(5) == (0.0, 0.25, 0.5, 0.75, 1.0) and relative_scales(1) == (0.0,)


def test_the_published_ramps_are_these() -> None:
    """VAR: ``t = cfg * ratio``, ``(1 + t) * cond - t * uncond``; HART the same, but its last scale repeats."""
    cfg, count = 4.5, 14
    published = [1 + cfg * index / (count - 1) for index in range(count)]
    assert linear(cfg + 1, count) == pytest.approx(published)
    assert linear_hold(cfg + 1, count) == pytest.approx([*published[:-1], published[-2]])


def test_a_number_is_spread_and_a_sequence_is_taken_as_it_is() -> None:
    assert guidance_per_pass(3, None, "linear", 3) == [1.0, 2.0, 3.0]
    assert guidance_per_pass(3, "constant", "linear", 3) == [3.0, 3.0, 3.0]
    for default in GUIDANCE_SCHEDULES:
        assert guidance_per_pass([3.0, 2.0, 1.0], None, default, 3) == [3.0, 2.0, 1.0]


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="guidance_schedule='steep': must be one of constant, linear, linear-hold"):
        guidance_per_pass(3.0, "steep", "constant", 3)
    with pytest.raises(UsageError, match="guidance_scale already gives one number per scale; give one of the two"):
        guidance_per_pass([3.0, 2.0, 1.0], "linear", "constant", 3)


# How the branches are combined


@pytest.mark.parametrize("name", GUIDANCE_TYPES)
def test_branches_that_agree_are_left_as_they_are(name: str) -> None:
    values = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    torch.testing.assert_close(GUIDANCE_TYPES[name](values, 7.0), values[:2])


@pytest.mark.parametrize("name", GUIDANCE_TYPES)
def test_a_scale_of_one_is_the_conditional_branch(name: str) -> None:
    values = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GUIDANCE_TYPES[name](values, 1.0), values[:2])


# Where it is applied


def step_of(guidance: float, later: float = 1.0, cfg_layers: tuple[int, ...] = (0,)) -> Step:
    """The first pass of two images; ``later`` is the guidance scale of those that read it."""
    settings = make_settings(SQUARE, (guidance, *(later,) * 4), cfg_layers=cfg_layers)
    return resolve(settings, 2, 8).steps[0]


def test_blocks_behind_which_guidance_is_applied() -> None:
    assert step_of(3.0, cfg_layers=(0, -1, -3)).cfg_blocks(8) == {7, 5}
    assert step_of(3.0).cfg_blocks(8) == frozenset()
    assert step_of(1.0, 3.0, cfg_layers=(-1,)).cfg_blocks(8) == frozenset()  # nothing is guided here


@pytest.mark.parametrize(
    ("step", "rows", "expected"),
    [
        (step_of(3.0), 4, "guided"),
        (step_of(1.0), 2, "conditional"),
        (step_of(1.0, 3.0), 2, "conditional"),  # both run, since later passes read both
        (step_of(0.0, 3.0), 4, "unconditional"),
        (step_of(0.0, 0.0), 2, "alone"),
        (step_of(3.0, cfg_layers=(-2,)), 2, "conditional"),  # both are the same behind the blocks
    ],
)
def test_logits_of_a_pass(step: Step, rows: int, expected: str) -> None:
    assert step.logit_rows == rows
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def logits(count: int) -> Tensor:
        asked.append(count)
        return values[:count]

    wanted = {
        "guided": classifier_free_guidance(values, 3.0),
        "conditional": values[:2],
        "unconditional": values[2:],
        "alone": values[:2],  # its rows are the only ones
    }
    assert torch.equal(step.guided_logits(logits), wanted[expected]) and asked == [rows]


def test_temperature_divides_before_guidance() -> None:
    settings = replace(make_settings(SQUARE, combine=GUIDANCE_TYPES["apg"]), temperature=(0.5,) * 5)
    cold = resolve(settings, 2, 8).steps[0]
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cold.guided_logits(lambda _: values), GUIDANCE_TYPES["apg"](values / 0.5, 3.0))


def test_guidance_without_a_place_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cfg_layers=\(\): guidance needs a place"):
        SamplingArguments(cfg_layers=()).settings(SQUARE, {}, 4, "constant", relative_scales)


def test_seeds_fit_a_generator() -> None:
    with pytest.raises(UsageError, match=f"seed={2**63}: must be a whole number from 0 to {2**63 - 1}"):
        make_noise(2**63, None, 1)
    assert make_noise(2**63 - 1, None, 1)[0] == (2**63 - 1,)
