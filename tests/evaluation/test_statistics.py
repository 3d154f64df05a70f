"""Intervals against known values."""

from __future__ import annotations

import numpy as np
import pytest

from stepvar.errors import UsageError
from stepvar.evaluation.statistics import bootstrap, paired, pareto_front, percentiles


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    """For many independent values the percentile bootstrap is mean +- 1.96 s / sqrt(n)."""
    values = np.random.default_rng(3).normal(5.0, 2.0, size=2000)
    found = bootstrap(values, resamples=4000)
    half = 1.96 * values.std() / 2000**0.5
    assert found.mean == pytest.approx(values.mean()) and found.count == 2000
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_whole_groups_are_resampled() -> None:
    """Two equal values per prompt carry the information of one: the interval is that of the prompts."""
    prompts = np.random.default_rng(5).normal(size=400)
    doubled, groups = np.repeat(prompts, 2), np.repeat(np.arange(400), 2).tolist()
    alone, grouped, naive = bootstrap(prompts), bootstrap(doubled, groups), bootstrap(doubled)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low)
    assert naive.high - naive.low < 0.8 * (alone.high - alone.low)


def test_groups_of_different_sizes_keep_the_mean_of_all_values() -> None:
    found = bootstrap([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 5.0)


def test_pairing_cancels_what_both_share() -> None:
    shared = np.random.default_rng(7).normal(scale=100.0, size=300)
    noise = np.random.default_rng(8).normal(scale=0.1, size=300)
    apart = paired(shared + 0.05 + noise, shared)
    assert 0.0 < apart.low < 0.05 < apart.high
    assert bootstrap(shared).high - bootstrap(shared).low > 10 > apart.high - apart.low


def test_repeats_and_a_constant_has_no_width() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap(values) == bootstrap(values)
    constant = bootstrap([3.0] * 7)
    assert (constant.low, constant.high) == (3.0, 3.0)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="values: none"):
        bootstrap([])
    with pytest.raises(UsageError, match="groups: 1 for 2 values"):
        bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(UsageError, match=r"level=1\.5"):
        bootstrap([1.0], level=1.5)


def test_percentiles() -> None:
    found = percentiles([float(value) for value in range(101)])
    assert found == {"median": 50.0, "p10": 10.0, "p90": 90.0}


def test_pareto_front() -> None:
    """(cost, quality): cheaper or better than all others."""
    points = [(1.0, 10.0), (0.5, 8.0), (0.7, 7.0), (0.5, 6.0), (0.2, 3.0), (0.9, 10.0)]
    assert pareto_front(points) == [4, 1, 5]
    assert pareto_front([(1.0, 2.0), (1.0, 2.0)]) == [0]
