"""One guidance branch alone at the last scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepvar.errors import UsageError
from stepvar.methods import Compose, DropGuidance, SkipLast
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from tests.helpers import SQUARE, Drawn, draw, draw_classes, equal_everywhere, make_plan


@pytest.mark.parametrize("last", [1, 3])
def test_the_conditional_branch_goes_on_alone(tiny_model: Infinity, tiny_var: VAR, last: int) -> None:
    families: list[tuple[Callable[..., Drawn[Any]], Any]] = [(draw, tiny_model), (draw_classes, tiny_var)]
    for drawing, model in families:
        dense = drawing(model, make_plan(SQUARE))
        dropped = drawing(model, make_plan(SQUARE), DropGuidance(last=last))
        by_hand = drawing(model, make_plan(SQUARE, (3.0,) * (5 - last) + (1.0,) * last))
        assert [step.branches for step in dropped.steps] == [2] * (5 - last) + [1] * last
        assert equal_everywhere(dropped.logits[:-last], dense.logits[:-last])
        assert equal_everywhere(dropped.logits, by_hand.logits)
        assert dropped.state.flops < dense.state.flops


def test_without_guidance_there_is_nothing_to_drop(tiny_model: Infinity) -> None:
    plan = make_plan(SQUARE, 1.0)
    assert equal_everywhere(draw(tiny_model, plan).logits, draw(tiny_model, plan, DropGuidance(last=2)).logits)


def test_wrong_settings_are_named(tiny_model: Infinity) -> None:
    with pytest.raises(UsageError, match="last=0: must be at least 1"):
        DropGuidance(last=0)
    with pytest.raises(UsageError, match="last=5: the schedule has 5 scales; drop guidance at fewer"):
        DropGuidance(last=5).edit(make_plan(SQUARE))
    for parts in ((SkipLast(2), DropGuidance(last=2)), (DropGuidance(last=2), SkipLast(2))):
        with pytest.raises(UsageError, match=r"last=2: the last 2 scales are not run.*give at least 3"):
            draw(tiny_model, make_plan(SQUARE), Compose(*parts))
