"""Means with confidence intervals, by bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepvar.errors import UsageError

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: over all values.
        low, high: ends of the interval.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, float | int]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}


def bootstrap(
    values: ArrayLike,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean of some values with a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (n,) numbers.
        groups: (n,) what each value belongs to, such as its prompt; whole groups are resampled, since images of
            one prompt are not independent. None: every value is its own group.
        resamples: how often.
        level: of the interval, in (0, 1).
        seed: of the resampling, so that the same values give the same interval.

    Raises:
        UsageError: without values, with another number of groups than values, or for a level outside (0, 1).
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise UsageError("values: none; a mean needs at least one")
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must be above 0 and below 1")
    sums, counts = _by_group(numbers, groups)
    chosen = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(numbers.mean()), float(low), float(high), int(numbers.size))


def paired(
    values: ArrayLike, reference: ArrayLike, groups: Sequence[object] | None = None, **settings: float
) -> Interval:
    """The mean of ``values - reference``, value by value, with its interval.

    What both have in common (a hard prompt, a lucky seed) cancels, so that small differences show.
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return bootstrap(difference, groups, **settings)  # type: ignore[arg-type]


def _by_group(
    values: NDArray[np.float64], groups: Sequence[object] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each group."""
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != len(values):
        raise UsageError(f"groups: {len(groups)} for {len(values)} values; give one for each")
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


@dataclass(frozen=True)
class Spread:
    """Median and range of a few measurements."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.lowest, "max": self.highest}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile of some measurements."""
    p10, median, p90 = np.quantile(np.asarray(values, dtype=np.float64), (0.1, 0.5, 0.9))
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other beats: cheaper and at least as good, or better at no more.

    Ordered by cost; of equal points the first stays.
    """
    front: list[int] = []
    best = -np.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front
