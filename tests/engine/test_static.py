"""Static copies and the tape of random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise, StreamNoise
from stepvar.engine import Engine
from stepvar.engine.noise import NoiseTape
from stepvar.engine.static import copy_into, static_copy
from stepvar.errors import UsageError
from stepvar.evaluation.noise import ResampledNoise
from stepvar.methods import Method
from stepvar.models.infinity import TextCondition
from stepvar.utils.tensors import signature, tensors_of
from tests.helpers import SQUARE, make_model, make_settings, make_text


@dataclass(frozen=True)
class Inner:
    values: Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    first: Tensor | None
    parts: tuple[Inner, ...]
    by_index: dict[int, Tensor]


def made(fill: float, name: str = "a", size: int = 2) -> Outer:
    def full() -> Tensor:
        return torch.full((size, 2), fill)

    return Outer(full(), (Inner(full(), name),), {3: full()})


def test_numbers_are_copied_in_place() -> None:
    static = static_copy(made(1.0))
    places = [tensor.data_ptr() for tensor in tensors_of(static)]
    copy_into(static, made(7.0))
    assert [tensor.data_ptr() for tensor in tensors_of(static)] == places
    assert all(bool((tensor == 7).all()) for tensor in tensors_of(static)) and len(places) == 3


def test_a_signature_is_all_but_the_numbers() -> None:
    assert signature(made(1.0)) == signature(made(2.0))
    assert len({signature(one) for one in (made(1.0), made(1.0, "b"), made(1.0, size=3), Outer(None, (), {}))}) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: SeededNoise((4, 5)),
        lambda: StreamNoise(torch.Generator().manual_seed(1)),
        lambda: ResampledNoise.of((4, 5), 1),
    ],
)
def test_a_tape_gives_the_numbers_of_its_source(make) -> None:
    device = torch.device("cpu")

    def ask(noise):
        drawn = noise.exponential(2, (2, 3, 6), device)
        own = noise.exponential(2, (2, 3), device, "own"), noise.normal(2, "own", (2, 3), device)
        return drawn, noise.soft(2, drawn), noise.normal(2, 0, (2, 3), device), *own

    tape = NoiseTape(make())
    recorded, expected = ask(tape), ask(make())
    assert all(torch.equal(one, other) for one, other in zip(recorded, expected, strict=True))
    tape.allocate(device)
    answered = ask(tape)
    tape.fill(2, make())
    assert all(torch.equal(one, other) for one, other in zip(answered, expected, strict=True))


def test_engines_by_name() -> None:
    with pytest.raises(UsageError, match="engine='fast': must be one of auto, eager, graphs"):
        Engine("fast")  # type: ignore[arg-type]
    model, settings = make_model(), make_settings(SQUARE)
    plan = Method().plan(settings, model.info, 1)
    condition = TextCondition(make_text((5,)))
    with pytest.raises(UsageError, match="engine='graphs': needs a CUDA device, the model is on cpu"):
        Engine("graphs").generate(model, condition, plan, Method(), SeededNoise((0,)))
    eager, auto = (
        Engine(name).generate(model, condition, plan, Method(), SeededNoise((0,))) for name in ("eager", "auto")
    )
    assert torch.equal(eager.latent, auto.latent)
