"""What must hold for every method in the registry."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.methods import METHODS, Dense, SkipLast, make_method
from stepvar.models.infinity import Infinity
from tests.helpers import (
    SQUARE,
    WIDE,
    equal_everywhere,
    generate_infinity,
    make_settings,
)


@pytest.mark.parametrize("name", METHODS)
def test_images_can_be_decoded(tiny_model: Infinity, name: str) -> None:
    generated = generate_infinity(tiny_model, make_settings(WIDE), make_method(name))
    pixels = tiny_model.decode(generated.state)
    assert pixels.shape == (1, 3, 2 * 6, 2 * 9)
    assert pixels.abs().max() <= 1 and pixels.std() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_known_by_their_names(name: str) -> None:
    method = make_method(name)
    assert type(method) is METHODS[name] and method.name == name == str(method)
    documented = "".join(base.__doc__ or "" for base in METHODS[name].__mro__)
    assert all(f"{field.name}: " in documented for field in fields(method))


def test_unknown_names_and_settings_say_what_exists() -> None:
    with pytest.raises(
        UsageError, match=r"method 'fast': unknown; choose one of stepvar, dense, .*, or give package.module:Class"
    ):
        make_method("fast")
    with pytest.raises(UsageError, match=r"ratio: not a setting of method 'stepvar'; its settings are keep, last"):
        make_method("stepvar", ratio=0.5)
    with pytest.raises(UsageError, match=r"keep: not a setting of method 'dense'; it has no settings"):
        make_method("dense", keep=0.5)


@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
def test_skipping_scales_shifts_no_draw(tiny_model: Infinity, schedule: ScaleSchedule) -> None:
    settings = make_settings(schedule)
    dense, short = (
        generate_infinity(tiny_model, settings, Dense()),
        generate_infinity(tiny_model, settings, SkipLast(2)),
    )
    assert len(short.steps) == len(schedule) - 2
    assert equal_everywhere(short.bits, dense.bits[:-2])
    assert equal_everywhere(short.logits, dense.logits[:-2])
    # The accumulated latent, at full size: what dense generation has before its last two scales.
    torch.testing.assert_close(
        tiny_model.next_tokens(short.state.latent, dense.steps[-2]), dense.record[f"tokens_in_{len(schedule) - 2}"]
    )
    assert short.state.cache.lengths[0] == sum(grid.size for grid in schedule.grids[:-2])


def test_skipping_needs_something_to_run() -> None:
    with pytest.raises(UsageError, match="count=0"):
        SkipLast(0)
    with pytest.raises(UsageError, match=r"count=5: the schedule runs 5 scales; skip fewer"):
        SkipLast(5).edit(make_settings(SQUARE))
