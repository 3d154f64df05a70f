"""The order in which candidates run, and the random numbers that they share."""

from __future__ import annotations

import torch

from stepvar.core.noise import SeededNoise
from stepvar.evaluation.noise import SHIFT, ResampledNoise
from stepvar.evaluation.run import in_turn, interleaved


def test_rounds_begin_elsewhere_and_change_direction() -> None:
    orders = [in_turn(range(5), number) for number in range(4)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert orders[1] == orders[0][::-1] and orders[2] not in orders[:2]
    assert in_turn([], 3) == []


def test_every_candidate_runs_once_in_every_round_behind_the_warmup() -> None:
    calls = []

    def run(candidate: str, number: int) -> int:
        calls.append((candidate, number))
        return len(calls)

    found = list(interleaved("ab", [7, 8], run, warmup=1))
    assert calls == [("a", 7), ("b", 7), ("a", 7), ("b", 7), ("b", 8), ("a", 8)]
    assert found == [(7, "a", 3), (7, "b", 4), (8, "b", 5), (8, "a", 6)]
    assert list(interleaved("ab", [], run, warmup=1)) == [] and len(calls) == 6


def test_the_noise_floor_samples_the_last_scales_again() -> None:
    early, late = SeededNoise([3]), SeededNoise([3 + SHIFT])
    noise = ResampledNoise.of([3], 0).from_scale(2)
    for scale, wanted in ((1, early), (2, late), (3, late)):
        place: tuple[int, tuple[int, ...], torch.device] = (scale, (1, 4, 2), torch.device("cpu"))
        assert torch.equal(noise.exponential(*place), wanted.exponential(*place))
        assert torch.equal(noise.exponential(*place, "step 1"), wanted.exponential(*place, "step 1"))
        assert not torch.equal(noise.exponential(*place, "step 1"), noise.exponential(*place))
        assert torch.equal(noise.normal(scale, 1, *place[1:]), wanted.normal(scale, 1, *place[1:]))
        assert torch.equal(noise.normal(scale, "own", *place[1:]), wanted.normal(scale, "own", *place[1:]))
        assert torch.equal(noise.exponential(*place, "own"), wanted.exponential(*place, "own"))
