"""What must hold for every method in the registry."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.methods import METHODS, Dense, Method, SkipLast, make_method
from stepvar.models.infinity import Infinity
from stepvar.models.infinity.model import InfinityState
from stepvar.models.var import VAR
from stepvar.models.var.model import VARState
from stepvar.tokens import ScaleSchedule
from tests.helpers import (
    LENGTHS,
    SQUARE,
    TINY,
    TINY_VAR,
    WIDE,
    Drawn,
    draw,
    draw_classes,
    equal_everywhere,
    make_plan,
    make_text,
)

LABELS = (3, 7, -1)


def check_shapes(
    drawn: Drawn[InfinityState], method: Method, schedule: ScaleSchedule, samples: int, guidance: float
) -> None:
    plan = method.edit(make_plan(schedule, guidance))
    assert [step.index for step in drawn.steps] == list(range(plan.scales))
    for step, bits, logits in zip(drawn.steps, drawn.bits, drawn.logits, strict=True):
        code_bits = TINY.tokenizer.code_bits
        assert bits.shape == (samples, 1, step.grid.h, step.grid.w, code_bits)
        assert logits.shape == (samples, step.grid.size, 2 * code_bits) and torch.isfinite(logits).all()
    assert drawn.state.latent.shape == (samples, code_bits, schedule[-1].h, schedule[-1].w)
    cache = drawn.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys]


def check_class_shapes(drawn: Drawn[VARState], method: Method, samples: int, guidance: float) -> None:
    plan = method.edit(make_plan(SQUARE, guidance))
    assert [step.index for step in drawn.steps] == list(range(plan.scales))
    tokenizer = TINY_VAR.tokenizer
    for step, indices, logits in zip(drawn.steps, drawn.indices, drawn.logits, strict=True):
        assert indices.shape == (samples, step.grid.size)
        assert logits.shape == (samples, step.grid.size, tokenizer.vocabulary) and torch.isfinite(logits).all()
    assert drawn.state.latent.shape == (samples, tokenizer.channels, 8, 8)
    cache = drawn.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys]


@pytest.mark.parametrize("guidance", [3.0, 1.0], ids=["guided", "plain"])
@pytest.mark.parametrize("samples", [1, 3], ids=["single", "batch"])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("name", METHODS)
def test_draws(tiny_model: Infinity, name: str, schedule: ScaleSchedule, samples: int, guidance: float) -> None:
    method, plan = make_method(name), make_plan(schedule, guidance, top_p=0.9)
    lengths = LENGTHS[:samples]
    drawn = draw(tiny_model, plan, method, make_text(lengths))
    check_shapes(drawn, method, schedule, samples, guidance)
    again = draw(tiny_model, plan, method, make_text(lengths))
    assert equal_everywhere(drawn.logits, again.logits)
    if samples > 1:
        for index, length in enumerate(lengths):
            alone = draw(tiny_model, plan, method, make_text([length], index), first=index)
            assert equal_everywhere([bits[index : index + 1] for bits in drawn.bits], alone.bits)
            torch.testing.assert_close(drawn.logits[-1][index : index + 1], alone.logits[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("guidance", [3.0, 1.0], ids=["guided", "plain"])
@pytest.mark.parametrize("samples", [1, 3], ids=["single", "batch"])
@pytest.mark.parametrize("name", METHODS)
def test_draws_classes(tiny_var: VAR, name: str, samples: int, guidance: float) -> None:
    """VAR has absolute positions; methods do not know."""
    method, plan = make_method(name), make_plan(SQUARE, guidance, top_p=0.9)
    labels = LABELS[:samples]
    drawn = draw_classes(tiny_var, plan, method, labels)
    check_class_shapes(drawn, method, samples, guidance)
    again = draw_classes(tiny_var, plan, method, labels)
    assert equal_everywhere(drawn.logits, again.logits)
    if samples > 1:
        for index, label in enumerate(labels):
            alone = draw_classes(tiny_var, plan, method, [label], first=index)
            assert equal_everywhere([indices[index : index + 1] for indices in drawn.indices], alone.indices)
            torch.testing.assert_close(drawn.logits[-1][index : index + 1], alone.logits[-1], atol=2e-4, rtol=0)
    pixels = tiny_var.decode(drawn.state)
    assert pixels.shape == (samples, 3, 16, 16) and pixels.abs().max() <= 1 and pixels.std() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_images_can_be_decoded(tiny_model: Infinity, name: str) -> None:
    drawn = draw(tiny_model, make_plan(WIDE), make_method(name))
    pixels = tiny_model.decode(drawn.state)
    assert pixels.shape == (1, 3, 2 * 6, 2 * 9)
    assert pixels.abs().max() <= 1 and pixels.std() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_known_by_their_names(name: str) -> None:
    method = make_method(name)
    assert type(method) is METHODS[name] and method.name == name and name in str(method)
    assert all(field.name in (METHODS[name].__doc__ or "") + "".join(b.__doc__ or "" for b in METHODS[name].__mro__)
               for field in fields(method))  # fmt: skip


def test_unknown_names_and_settings_say_what_exists() -> None:
    with pytest.raises(UsageError, match=r"method 'fast': unknown; choose one of dense, stepvar"):
        make_method("fast")
    with pytest.raises(UsageError, match=r"ratio: not a setting of method 'stepvar'; its settings are keep, last"):
        make_method("stepvar", ratio=0.5)
    with pytest.raises(UsageError, match=r"keep: not a setting of method 'dense'; it has no settings"):
        make_method("dense", keep=0.5)


@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
def test_skipping_scales_shifts_no_draw(tiny_model: Infinity, schedule: ScaleSchedule) -> None:
    plan = make_plan(schedule)
    dense, short = draw(tiny_model, plan, Dense()), draw(tiny_model, plan, SkipLast(2))
    assert len(short.steps) == len(schedule) - 2
    assert equal_everywhere(short.bits, dense.bits[:-2])
    assert equal_everywhere(short.logits, dense.logits[:-2])
    # The picture so far, at full size: what dense generation has before its last two scales.
    torch.testing.assert_close(
        tiny_model.next_tokens(short.state.latent, dense.steps[-2]), dense.record[f"tokens_in_{len(schedule) - 2}"]
    )
    assert short.state.cache.lengths[0] == sum(grid.size for grid in schedule.grids[:-2])


def test_skipping_needs_something_to_run() -> None:
    with pytest.raises(UsageError, match="count=0"):
        SkipLast(0)
    with pytest.raises(UsageError, match=r"count=5: the schedule runs 5 scales; skip fewer"):
        SkipLast(5).edit(make_plan(SQUARE))
