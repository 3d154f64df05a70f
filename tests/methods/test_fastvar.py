"""FastVAR's rule; that it computes what the original does is in the goldens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.methods import FastVAR
from stepvar.models.infinity import Infinity
from tests.helpers import SQUARE, generate_infinity, make_settings

SMALL: dict[str, Any] = {"prune": (0.25, 0.5), "skip": 1, "blocks_before": 1, "blocks_after": 1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prune": ()}, "prune=()"),
        ({"prune": (1.0,)}, "prune=1.0"),
        ({"prune": ("0.5",)}, "prune='0.5'"),
        ({"skip": -1}, "skip=-1"),
        ({"blocks_before": -2}, "blocks_before=-2"),
    ],
)
def test_wrong_settings_are_named(settings: dict, said: str) -> None:
    with pytest.raises(UsageError) as error:
        FastVAR(**settings)
    assert said in str(error.value)


def test_too_short_a_schedule_is_refused() -> None:
    settings = make_settings(SQUARE)
    with pytest.raises(UsageError, match="one of them unpruned"):
        FastVAR(prune=(0.5,) * len(settings.schedule), skip=0).edit(settings)


def test_scales_tokens_and_blocks(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    generated = generate_infinity(tiny_model, settings, FastVAR(**SMALL))
    scales = len(settings.schedule)
    assert len(generated.steps) == scales - 1
    sizes = [step.grid.size for step in generated.steps]
    kept = [size - int(size * share) for size, share in zip(sizes[-2:], (0.25, 0.5), strict=True)]
    inside = tiny_model.config.depth - 2
    assert [len(generated.kept(step)) for step in generated.steps] == [0] * (scales - 3) + [3 * inside] * 2
    assert [generated.kept(step)[0].shape[1] for step in generated.steps[-2:]] == kept
    lengths = generated.state.cache.lengths
    assert lengths[0] == lengths[-1] == sum(sizes)
    assert lengths[1] == sum(sizes[:-2]) + sum(kept)


def test_nothing_pruned_and_nothing_skipped_is_dense(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    dense, same = (
        generate_infinity(tiny_model, settings),
        generate_infinity(tiny_model, settings, FastVAR(prune=(0.0,), skip=0, blocks_before=0)),
    )
    assert all(torch.equal(a, b) for a, b in zip(dense.logits, same.logits, strict=True))


def test_blocks_may_be_fused_at_scales_that_are_left_alone(tiny_model: Infinity) -> None:
    method = FastVAR(**SMALL)
    plan = method.plan(make_settings(SQUARE), tiny_model.info, 1)
    acts = [method.acts_on_sublayers(step) for step in plan.steps]
    assert acts == [False] * (len(plan.steps) - 3) + [True] * 3, "one that is kept for later, and two pruned"
