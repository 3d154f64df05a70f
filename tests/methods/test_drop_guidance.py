"""One guidance branch alone at the last scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.methods import Compose, DropGuidance, HighPass, SkipLast
from stepvar.methods.drop_guidance import Branch
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from stepvar.text import TextFeatures
from tests.helpers import (
    SQUARE,
    Generation,
    equal_everywhere,
    generate_infinity,
    generate_var,
    make_settings,
    make_text,
)
from tests.methods.helpers import work


def families(infinity: Infinity, var: VAR) -> list[tuple[Callable[..., Generation[Any]], Any]]:
    return [(generate_infinity, infinity), (generate_var, var)]


@pytest.mark.parametrize("last", [1, 3])
def test_the_conditional_branch_goes_on_alone(tiny_model: Infinity, tiny_var: VAR, last: int) -> None:
    for generate, model in families(tiny_model, tiny_var):
        dense = generate(model, make_settings(SQUARE))
        dropped = generate(model, make_settings(SQUARE), DropGuidance(last=last))
        by_hand = generate(model, make_settings(SQUARE, (3.0,) * (5 - last) + (1.0,) * last))
        assert [step.branches for step in dropped.steps] == [2] * (5 - last) + [1] * last
        assert equal_everywhere(dropped.logits[:-last], dense.logits[:-last])
        assert equal_everywhere(dropped.logits, by_hand.logits)
        assert work(dropped.plan) < work(dense.plan)


@pytest.mark.parametrize("last", [1, 3])
def test_the_unconditional_branch_goes_on_alone(tiny_model: Infinity, tiny_var: VAR, last: int) -> None:
    """It gives what guidance of 0 combines, at half the work; every other part of the generation is the same."""
    for generate, model in families(tiny_model, tiny_var):
        dense = generate(model, make_settings(SQUARE))
        kept = generate(model, make_settings(SQUARE), DropGuidance(last=last, branch="unconditional"))
        mixed = generate(model, make_settings(SQUARE, (3.0,) * (5 - last) + (1e-9,) * last))
        assert [step.branches for step in kept.steps] == [2] * (5 - last) + [1] * last
        assert [step.branches for step in mixed.steps] == [2] * 5
        assert {step.row_slice.start for step in kept.steps[-last:]} == {1}
        assert equal_everywhere(kept.logits[:-last], dense.logits[:-last])
        for one, other in zip(kept.logits, mixed.logits, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=0)
        assert work(kept.plan) < work(mixed.plan)


def test_the_unconditional_branch_is_sampled_from_where_the_other_must_run_too(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE, (3.0, 3.0, 0.0, 3.0, 3.0))
    zero, tiny = (
        generate_infinity(tiny_model, settings),
        generate_infinity(tiny_model, make_settings(SQUARE, (3.0, 3.0, 1e-9, 3.0, 3.0))),
    )
    assert [step.branches for step in zero.steps] == [2] * 5
    for one, other in zip(zero.logits, tiny.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_an_unconditional_generation_runs_one_branch(tiny_model: Infinity) -> None:
    generated = generate_infinity(tiny_model, make_settings(SQUARE, 0.0), text=make_text((5, 3)))
    assert [(step.branches, step.row_slice) for step in generated.steps] == [(1, slice(2, 4))] * 5
    null = tiny_model.transformer.null_text(2, 5)
    by_hand = generate_infinity(tiny_model, make_settings(SQUARE, 1.0), text=TextFeatures(null, (5, 3)))
    for one, other in zip(generated.logits, by_hand.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_pruning_goes_on_with_the_branch_that_is_kept(tiny_model: Infinity) -> None:
    generated = generate_infinity(
        tiny_model, make_settings(SQUARE), Compose(HighPass(last=2), DropGuidance(branch="unconditional"))
    )
    assert [step.branches for step in generated.steps] == [2, 2, 2, 2, 1]
    cache = generated.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys]


def test_without_guidance_there_is_nothing_to_drop(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE, 1.0)
    for branch in get_args(Branch):
        dropped = generate_infinity(tiny_model, settings, DropGuidance(last=2, branch=branch))
        assert equal_everywhere(generate_infinity(tiny_model, settings).logits, dropped.logits)
        assert {step.branches for step in dropped.steps} == {1}


def test_wrong_settings_are_named(tiny_model: Infinity) -> None:
    with pytest.raises(UsageError, match="last=0: must be a whole number from 1"):
        DropGuidance(last=0)
    with pytest.raises(UsageError, match="branch='both': must be one of conditional, unconditional"):
        DropGuidance(branch="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="last=5: the schedule has 5 scales; drop guidance at fewer"):
        DropGuidance(last=5).edit(make_settings(SQUARE))
    for parts in ((SkipLast(2), DropGuidance(last=2)), (DropGuidance(last=2), SkipLast(2))):
        with pytest.raises(UsageError, match=r"last=2: the last 2 scales are not run.*give at least 3"):
            generate_infinity(tiny_model, make_settings(SQUARE), Compose(*parts))
