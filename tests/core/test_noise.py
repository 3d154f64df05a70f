"""Random numbers: those of an image and a place, whatever else is asked for, and of the right distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.kernels import random
from stepvar.utils.hashing import mix_

CPU = torch.device("cpu")


@pytest.mark.parametrize("classes", [2, 4])
def test_image_alone_gets_the_draws_that_it_gets_in_a_batch(classes: int) -> None:
    batch = SeededNoise([7, 8, 9]).exponential(2, (3, 5, classes), CPU)
    for row, seed in enumerate([7, 8, 9]):
        assert torch.equal(batch[row], SeededNoise([seed]).exponential(2, (1, 5, classes), CPU)[0])
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("classes", [2, 50])
def test_scales_have_streams_of_their_own(classes: int) -> None:
    noise = SeededNoise([3])
    early = noise.exponential(0, (1, 25, classes), CPU)
    late = noise.exponential(4, (1, 25, classes), CPU)
    fresh = SeededNoise([3])
    assert torch.equal(fresh.exponential(4, (1, 25, classes), CPU), late)  # without those of scale 0
    assert torch.equal(noise.exponential(4, (1, 25, classes), CPU), late)  # and asked again
    assert not torch.equal(early, late)


@pytest.mark.parametrize("classes", [2, 8])
def test_neighbouring_seeds_and_scales_do_not_share_streams(classes: int) -> None:
    draws = {
        (seed, scale): SeededNoise([seed]).exponential(scale, (1, 8, classes), CPU)
        for seed in range(12)
        for scale in range(12)
    }
    assert len({tuple(draw.flatten().tolist()) for draw in draws.values()}) == len(draws)


def uniform(draws: Tensor) -> Tensor:
    """Exp(1) variables as uniform ones, in float64."""
    return (-draws.double()).exp()


def test_draws_are_exponential() -> None:
    count = 512 * 1024
    draws = SeededNoise([3]).exponential(1, (1, 512, 1024), CPU).flatten().double()
    assert abs(float(draws.mean()) - 1) < 4 / count**0.5
    assert abs(float(draws.var()) - 1) < 4 * (8 / count) ** 0.5
    ranked = uniform(draws).sort().values
    distance = (ranked - (torch.arange(count) + 0.5) / count).abs().max()
    assert float(distance) * count**0.5 < 1.95  # Kolmogorov and Smirnov, 0.1 %
    assert float(draws.min()) > 0 and torch.isfinite(draws).all()


def test_draws_are_independent_of_their_neighbours() -> None:
    draws = uniform(SeededNoise([3]).exponential(1, (1, 512, 1024), CPU).flatten()) - 0.5
    for lag in (1, 2, 3, 16, 512, 1024, 4096):
        correlation = float((draws[:-lag] * draws[lag:]).mean()) * 12
        assert abs(correlation) * len(draws) ** 0.5 < 4.5
    table = uniform(SeededNoise([3]).exponential(1, (1, 512, 1024), CPU)[0])
    for axis in (0, 1):  # means of positions, and of classes
        deviation = (table.mean(axis) - 0.5) * (12 * table.shape[axis]) ** 0.5
        assert abs(float(deviation.square().mean()) - 1) < 0.25


def test_hash_keys_are_functions_of_their_own() -> None:
    """Not windows of one sequence, of which large ones would overlap."""
    numbers = torch.arange(1 << 16, dtype=torch.int32)
    first, second = (mix_(numbers.clone(), torch.tensor(key, dtype=torch.int32)) for key in (1, 2))
    assert first.unique().numel() == second.unique().numel() == len(numbers)
    for shift in (0, 1, 2, 3, 1024):
        assert not (first[shift:] == second[: len(numbers) - shift]).any()


def test_draws_never_change() -> None:
    draws = SeededNoise([7]).exponential(2, (1, 2, 3), CPU)
    assert (uniform(draws) * 2**23 - 0.5).round().flatten().long().tolist() == [
        7747520,
        4746156,
        8364990,
        5039017,
        3865614,
        3843363,
    ]


@pytest.mark.parametrize("piece", [5, 64, 1 << 20])
def test_draws_do_not_depend_on_the_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = SeededNoise([7, 8]).exponential(2, (2, 37, 11), CPU)
    monkeypatch.setattr(random, "CPU_PIECE", piece)
    assert torch.equal(SeededNoise([7, 8]).exponential(2, (2, 37, 11), CPU), wanted)


def test_draws_depend_on_their_own_position_alone() -> None:
    """A scale of which less is drawn keeps its numbers."""
    whole = SeededNoise([7]).exponential(2, (1, 40, 11), CPU)
    assert torch.equal(SeededNoise([7]).exponential(2, (1, 25, 11), CPU), whole[:, :25])


def test_draws_that_methods_name_are_their_own() -> None:
    """None shifts another or the codes, and an image of a batch gets those that it gets alone."""
    noise, shape = SeededNoise([7, 8]), (2, 40, 3)
    drawn = [noise.exponential(2, shape, CPU, name) for name in (None, "a", "b")]
    drawn += [noise.normal(2, turn, shape, CPU) for turn in (0, "a", "b")]
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 6
    alone = SeededNoise([8])
    assert torch.equal(alone.exponential(2, (1, 40, 3), CPU, "b")[0], drawn[2][1])
    assert torch.equal(alone.normal(2, "b", (1, 40, 3), CPU)[0], drawn[5][1])
    assert not torch.equal(noise.normal(3, "b", shape, CPU), drawn[5])


def test_normal_draws_are_normal_and_independent() -> None:
    draws = SeededNoise([3]).normal(1, "own", (1, 511, 513), CPU).flatten().double()
    count = len(draws)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = float(draws.pow(power).std()) / count**0.5
        assert abs(float(draws.pow(power).mean()) - moment) < 4 * spread
    ranked = torch.special.ndtr(draws.sort().values)
    distance = (ranked - (torch.arange(count) + 0.5) / count).abs().max()
    assert float(distance) * count**0.5 < 1.95  # Kolmogorov and Smirnov, 0.1 %
    for lag in (1, 2, 513, -(-count // 2)):
        for other in (draws, draws.square() - 1):
            assert abs(float((draws[:-lag] * other[lag:]).mean())) * (count - lag) ** 0.5 < 4.5 * 1.5


def test_normal_draws_depend_on_their_own_position_alone() -> None:
    whole = SeededNoise([7]).normal(2, 0, (1, 40, 11), CPU)
    assert torch.equal(SeededNoise([7]).normal(2, 0, (1, 25, 11), CPU), whole[:, :25])


def test_normal_draws_never_change() -> None:
    drawn = SeededNoise([7]).normal(2, "own", (1, 3), CPU)
    torch.testing.assert_close(drawn, torch.tensor([[1.0017562, 0.1422190, 0.6134816]]), atol=1e-6, rtol=0)


def test_bits_that_race_have_their_probability() -> None:
    """What two classes are drawn for: the smaller number, each over its probability, decides a bit."""
    drawn = SeededNoise(range(8)).exponential(5, (8, 1024, 32, 2), CPU)
    for chance in (0.02, 0.5, 0.9):
        ones = (drawn[..., 1] / chance < drawn[..., 0] / (1 - chance)).double()
        deviation = math.sqrt(chance * (1 - chance))
        assert abs(float(ones.mean()) - chance) < 4 * deviation / ones.numel() ** 0.5
        by_bit = (ones.mean((0, 1)) - chance) / deviation * 8192**0.5
        assert abs(float(by_bit.square().mean()) - 1) < 1
        for lag in (1, 2, 32, 64):
            product = (ones.flatten()[lag:] - chance) * (ones.flatten()[:-lag] - chance)
            assert abs(float(product.mean())) / deviation**2 * ones.numel() ** 0.5 < 4.5


@pytest.mark.parametrize("shape", [(1, 0, 5, 2), (0, 3, 5, 2)])
def test_no_place_has_no_number(shape: tuple[int, ...]) -> None:
    source = SeededNoise(range(shape[0]))
    assert source.exponential(0, shape, CPU).numel() == source.normal(0, 0, shape, CPU).numel() == 0
