"""Settings resolved into a plan: which passes run, what they read, with how many branches and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.resolve import resolve
from stepvar.core.tokens import ScaleSchedule
from stepvar.methods import FastVAR, SkipLast
from tests.core.test_tokens import VIDEO
from tests.helpers import SQUARE, equal_everywhere, generate_infinity, make_model, make_settings

DEPTH = 3


def plan_of(settings: Settings, samples: int = 1) -> Plan:
    return resolve(settings, samples, DEPTH)


def forced(*passes: int, guidance: Any = 3.0, schedule: ScaleSchedule = VIDEO) -> Settings:
    return make_settings(schedule, guidance, forced=frozenset(passes))


def half_between(step: Step, layer: int, depth: int) -> int:
    """A method that prunes the last scale of a clip behind the first block, to half of its tokens, rounded up."""
    prunes = step.scales_from_end == 1 and 0 < layer < depth
    return (step.grid.size + 1) // 2 if prunes else step.grid.size


# Rows


def test_a_row_holds_what_its_pass_needs() -> None:
    settings = make_settings(VIDEO, (3, 1, 3, 3, 3, 3, 3), top_k=(0, 1, 2, 3, 4, 5, 6), smooth=(0.5,) * 7)
    plan = plan_of(settings, samples=2)
    assert [step.index for step in plan.steps] == list(range(7)) and plan.step(4) is plan.steps[4]
    step = plan.step(4)
    assert (step.grid, step.clip, step.scale, step.scales_from_end) == (VIDEO[4], 1, 1, 2)
    assert (step.samples, step.branches, step.rows, step.row_slice) == (2, 2, 4, slice(0, 4))
    assert (step.guidance, step.temperature, step.top_k, step.relative_scale) == (3, 1.0, 4, 0.5)
    assert (step.forced, step.computed, step.is_last) == (False, True, False) and plan.steps[-1].is_last
    assert step.settings is settings
    assert (plan.schedule, plan.depth, plan.samples, plan.rows) == (VIDEO, DEPTH, 2, 4)
    with pytest.raises(KeyError):
        plan_of(SkipLast(1).edit(settings)).step(6)


def test_without_soft_codes_no_relative_scale() -> None:
    assert plan_of(make_settings(SQUARE)).steps[0].relative_scale is None


# What passes attend to


def test_an_image_attends_to_all_that_came_before() -> None:
    steps = plan_of(make_settings(SQUARE)).steps
    assert [step.attends_to for step in steps] == [(), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]
    assert [step.is_read for step in steps] == [True] * 4 + [False]
    assert not any(step.is_context for step in steps)


def test_a_scale_may_attend_to_itself_alone() -> None:
    """Then nothing is kept, and a pass has the branches that its own guidance needs, whatever later ones need."""
    schedule = replace(SQUARE, kv_scope="none")
    plan = plan_of(make_settings(schedule, (1.0, 3.0, 0.0, 1.0, 3.0)))
    assert [step.attends_to for step in plan.steps] == [()] * 5 and not any(step.is_read for step in plan.steps)
    assert [(step.branches, step.first_row) for step in plan.steps] == [(1, 0), (2, 0), (1, 1), (1, 0), (2, 0)]
    assert plan.cache_tokens == (0,) * DEPTH and plan.attended(plan.steps[-1]) == plan.steps[-1].tokens
    assert [step.index for step in plan_of(forced(0, 1, schedule=schedule)).computed] == [2, 3, 4]


def test_soft_codes_may_be_added_at_some_scales_only() -> None:
    smooth = (None, 0.25, None, 0.75, None)
    assert tuple(step.relative_scale for step in plan_of(make_settings(SQUARE, smooth=smooth)).steps) == smooth


def test_a_clip_attends_to_the_end_of_the_clip_before() -> None:
    steps = plan_of(make_settings(VIDEO)).steps
    assert [step.attends_to for step in steps] == [(), (), (), (2,), (2,), (2,), (2,)]
    assert [step.is_read for step in steps] == [False, False, True, False, False, False, False]
    assert [step.is_context for step in steps] == [True] * 3 + [False] * 4


def test_what_is_skipped_is_not_attended_to() -> None:
    steps = plan_of(SkipLast(1).edit(make_settings(VIDEO))).steps
    assert [(step.index, step.attends_to) for step in steps] == [(0, ()), (3, (0,)), (4, (0,)), (5, (0,))]
    assert [step.index for step in steps if step.is_read] == [0]


# Tokens


def test_a_dense_plan_runs_every_token_through_every_block() -> None:
    plan = plan_of(make_settings(SQUARE))
    assert [step.tokens for step in plan.steps] == [(grid.size,) * DEPTH for grid in SQUARE]
    assert plan.cache_tokens == (SQUARE.size,) * DEPTH
    assert plan.attended(plan.steps[2]) == (1 + 4 + 16,) * DEPTH


def test_tokens_of_a_method_make_caches_and_attention() -> None:
    plan = resolve(make_settings(SQUARE), 1, DEPTH, half_between)
    last = plan.steps[-1]
    assert last.tokens == (64, 32, 32) and last.fewest_tokens == 32
    assert plan.cache_tokens == (SQUARE.size, SQUARE.size - 32, SQUARE.size - 32)
    assert plan.attended(last) == plan.cache_tokens


def test_a_cache_of_clips_holds_the_largest_pass_that_is_read() -> None:
    three = ScaleSchedule(
        (*VIDEO.grids, *VIDEO.grids[3:6]),
        clips=(*VIDEO.clips, 2, 2, 2),
        scales=(*VIDEO.scales, 0, 1, 1),
        kv_scope="clip",
    )
    plan = resolve(make_settings(three), 1, DEPTH, half_between)
    assert [step.index for step in plan.steps if step.is_read] == [2, 6]
    assert plan.cache_tokens == (27, 14, 14)
    assert plan.attended(plan.step(8)) == (12 + 27, 6 + 14, 6 + 14)
    still = ScaleSchedule(VIDEO.grids[:3], scales=VIDEO.scales[:3], clips=(0, 0, 0), kv_scope="clip")
    assert plan_of(make_settings(still)).cache_tokens == (0,) * DEPTH  # nothing reads the keys of a still image


def test_weights_of_passes_grow_with_tokens_and_with_what_they_attend_to() -> None:
    weights = plan_of(make_settings(SQUARE)).pass_weights
    assert sorted(weights, key=weights.__getitem__) == [0, 1, 2, 3, 4]
    assert weights[0] == 2 * DEPTH * (8192 + 1)  # two branches of one token, which sees itself
    assert plan_of(make_settings(SQUARE, 1.0)).pass_weights[0] == weights[0] / 2
    assert plan_of(forced(0, 1, 2)).pass_weights[0] == 0.0


# Forced codes


def test_forced_passes_that_nobody_reads_are_not_computed() -> None:
    def computed(settings: Settings) -> list[int]:
        return [step.index for step in plan_of(settings).computed]

    assert computed(forced(0, 1, 2)) == [2, 3, 4, 5, 6]
    assert computed(forced(*range(7))) == []
    assert computed(forced(0, 1, schedule=SQUARE)) == [0, 1, 2, 3, 4]  # an image model reads all that came before
    plan = plan_of(forced(0, 1, 2))
    assert [step.forced for step in plan.steps] == [True] * 3 + [False] * 4
    assert [step.fewest_tokens for step in plan.steps] == [0, 0, 4, 3, 12, 12, 27]
    assert plan.step(3).attends_to == (2,) and plan.step(2).is_read


def test_what_is_read_by_passes_that_are_not_computed_is_not_read() -> None:
    assert not any(step.is_read for step in plan_of(forced(*range(7))).steps)
    assert plan_of(forced(*range(7))).cache_tokens == (0,) * DEPTH


def test_forced_scales_are_not_skipped() -> None:
    settings = SkipLast(1).edit(forced(0, 1, 2))
    assert settings.passes == (0, 1, 2, 3, 4, 5) and settings.computed == (2, 3, 4, 5)
    assert (settings.scales, settings.skipped) == (2, 1)


def test_forced_codes_are_taken_in_place_of_sampled_ones() -> None:
    """The bits that were sampled, forced: the rest of the image is the same."""
    model, settings = make_model(), make_settings(SQUARE)
    generated = generate_infinity(model, settings)
    bits = {index: generated.bits[index][:, 0].flatten(1, 2).long() for index in (0, 1, 2)}
    again = generate_infinity(model, settings, forced=bits)
    assert equal_everywhere(generated.bits, again.bits)
    assert torch.equal(generated.state.latent, again.state.latent)
    assert sorted(name for name in again.record if name.startswith("logits")) == ["logits_3", "logits_4"]
    other = generate_infinity(model, settings, forced={0: 1 - bits[0]})
    assert not equal_everywhere(generated.bits[1:], other.bits[1:])
    assert torch.equal(other.bits[0][:, 0].flatten(1, 2), 1 - bits[0])


# Branches


def test_branches_run_where_they_are_combined_or_read() -> None:
    def branches(settings: Settings) -> list[int]:
        return [step.branches for step in plan_of(settings).steps]

    assert branches(make_settings(VIDEO, (3, 1, 1, 1, 1, 3, 1))) == [2, 1, 2, 1, 1, 2, 1]
    assert branches(make_settings(VIDEO, (3, 1, 3, 1, 1, 1, 1))) == [2, 1, 2, 1, 1, 1, 1]
    assert branches(forced(0, 1, 2, guidance=(3, 3, 3, 1, 1, 1, 1)))[2:] == [
        1,
        1,
        1,
        1,
        1,
    ]  # nobody guides forced codes
    assert not make_settings(VIDEO, 1.0).guided and make_settings(VIDEO, (1, 1, 1, 1, 1, 1, 2)).guided


def test_guidance_is_applied_where_both_branches_run_and_differ() -> None:
    steps = plan_of(make_settings(SQUARE, (1, 3, 0, 1, 0))).steps
    assert [step.branches for step in steps] == [2, 2, 2, 2, 1]  # later passes read both
    assert [step.applies_cfg for step in steps] == [False, True, False, False, False]


def test_the_unconditional_branch_alone_has_the_second_rows() -> None:
    plan = plan_of(make_settings(SQUARE, (3, 3, 3, 0, 0)), samples=2)
    assert [step.first_row for step in plan.steps] == [0, 0, 0, 2, 2]
    assert plan.steps[-1].row_slice == slice(2, 4) and plan.steps[0].row_slice == slice(0, 4)
    assert plan.rows == 4 and plan.guided
    off = plan_of(make_settings(SQUARE, 1.0), samples=2)
    assert [step.first_row for step in off.steps] == [0] * 5 and off.rows == 2 and not off.guided


# Settings


def test_skipping_the_last_scales_skips_those_of_every_clip() -> None:
    settings = SkipLast(1).edit(make_settings(VIDEO))
    assert settings.passes == (0, 3, 4, 5) and (settings.scales, settings.skipped) == (1, 1)
    assert SkipLast(1).edit(SkipLast(1).edit(make_settings(SQUARE))).passes == (0, 1, 2)
    three = FastVAR(prune=(0.5,), skip=2).edit(SkipLast(1).edit(make_settings(SQUARE)))
    assert three.passes == (0, 1, 2)
    with pytest.raises(ValueError, match="count=2: a clip of the schedule has 2 scales"):
        make_settings(VIDEO).without_last(2)


def test_late_scales_count_those_that_are_not_run() -> None:
    assert make_settings(SQUARE).late_scales() == 1  # 64 of 121 tokens
    assert SkipLast(1).edit(make_settings(SQUARE)).late_scales() == 2


@pytest.mark.parametrize("passes", [(1, 0), (0, 0), (0, 7), (-1, 0)])
def test_passes_must_ascend(passes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend between 0 and 6"):
        make_settings(VIDEO, passes=passes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": (1.0,)}, "guidance: needs one value for each of the 5 scales"),
        ({"temperature": (1.0,) * 6}, "temperature: needs one value for each of the 5 scales"),
        ({"top_k": (1, 2)}, "top_k: needs one value, or one for each of the 5 scales"),
        ({"smooth": (1.0,)}, "smooth: needs no value, or one for each of the 5 scales"),
    ],
)
def test_settings_have_one_value_per_pass(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_settings(SQUARE), **change)
