"""Which passes of a generation run, which go through the blocks, and with how many branches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.core.plan import Plan
from stepvar.methods import FastVAR, SkipLast
from tests.core.test_tokens import VIDEO
from tests.helpers import SQUARE, draw, equal_everywhere, make_model, make_settings


def given(plan: Plan, *passes: int) -> Plan:
    return replace(plan, given={index: torch.zeros(1, plan.schedule[index].size) for index in passes})


def test_in_a_video_only_the_end_of_a_clip_is_read() -> None:
    steps = list(make_settings(VIDEO).steps(1))
    assert [step.is_read for step in steps] == [False, False, True, False, False, False, False]
    assert all(step.is_read for step in list(make_settings(SQUARE).steps(1))[:-1])


def test_given_passes_that_nobody_reads_are_not_computed() -> None:
    assert given(make_settings(VIDEO), 0, 1, 2).computed == (2, 3, 4, 5, 6)
    assert given(make_settings(VIDEO), *range(7)).computed == ()
    assert given(make_settings(SQUARE), 0, 1).computed == (0, 1, 2, 3, 4)  # an image model reads all that came before


def test_branches_run_where_they_are_mixed_or_read() -> None:
    def branches(plan: Plan) -> list[int]:
        return [step.branches for step in plan.steps(1)]

    assert branches(make_settings(VIDEO, (3, 1, 1, 1, 1, 3, 1))) == [2, 1, 2, 1, 1, 2, 1]
    assert branches(make_settings(VIDEO, (3, 1, 3, 1, 1, 1, 1))) == [2, 1, 2, 1, 1, 1, 1]
    # What is given is mixed by nobody.
    assert branches(given(make_settings(VIDEO, (3, 3, 3, 1, 1, 1, 1)), 0, 1, 2))[2:] == [1, 1, 1, 1, 1]
    assert not make_settings(VIDEO, 1.0).guided and make_settings(VIDEO, (1, 1, 1, 1, 1, 1, 2)).guided


def test_skipping_the_last_scales_skips_those_of_every_clip() -> None:
    plan = SkipLast(1).edit(make_settings(VIDEO))
    assert plan.passes == (0, 3, 4, 5) and (plan.scales, plan.skipped) == (1, 1)
    assert [step.index for step in plan.steps(1) if step.is_read] == [0]
    assert SkipLast(1).edit(SkipLast(1).edit(make_settings(SQUARE))).passes == (0, 1, 2)
    three = FastVAR(prune=(0.5,), skip=2).edit(SkipLast(1).edit(make_settings(SQUARE)))
    assert three.passes == (0, 1, 2)
    with pytest.raises(ValueError, match="count=2: a clip of the schedule has 2 scales"):
        make_settings(VIDEO).without_last(2)


def test_given_scales_are_not_skipped() -> None:
    plan = SkipLast(1).edit(given(make_settings(VIDEO), 0, 1, 2))
    assert plan.passes == (0, 1, 2, 3, 4, 5) and plan.computed == (2, 3, 4, 5)
    assert (plan.scales, plan.skipped) == (2, 1)


def test_passes_must_ascend() -> None:
    for passes in ((1, 0), (0, 0), (0, 7), (-1, 0)):
        with pytest.raises(ValueError, match="must ascend between 0 and 6"):
            make_settings(VIDEO, passes=passes)


def test_given_symbols_are_taken_in_place_of_drawn_ones() -> None:
    """The symbols that were drawn, given back: the rest of the picture is the same."""
    model, plan = make_model(), make_settings(SQUARE)
    drawn = draw(model, plan)
    symbols = {index: drawn.bits[index][:, 0].flatten(1, 2).long() for index in (0, 1, 2)}
    again = draw(model, replace(plan, given=symbols))
    assert equal_everywhere(drawn.bits, again.bits)
    assert torch.equal(drawn.state.latent, again.state.latent)
    assert sorted(name for name in again.record if name.startswith("logits")) == ["logits_3", "logits_4"]
    other = draw(model, replace(plan, given={0: 1 - symbols[0]}))
    assert not equal_everywhere(drawn.bits[1:], other.bits[1:])
    assert torch.equal(other.bits[0][:, 0].flatten(1, 2), 1 - symbols[0])
