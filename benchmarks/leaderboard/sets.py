"""How far all pictures of a method are from real ones, with an interval: where no image is there to be near to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.metrics.scenes import decode_features
from stepvar.evaluation.statistics import LEVEL, RESAMPLES, Interval
from stepvar.evaluation.summary import Rows

Numbers = NDArray[np.float64]

LEAST = 8
"""Prompts that a distance needs."""


class Sums:
    """Sums over pairs of images of two prompts each, from which a distance of any choice of prompts follows.

    Attributes:
        pairs: (P, P) how many.
        kernels: (P, P) of the kernel ``(x.y / C + 1)^3`` (KID, Binkowski et al. 2018).
    """

    def __init__(self, first: Rows, second: Rows, prompts: list[str]) -> None:
        (one, own), (other, others) = (_features(rows, prompts) for rows in (first, second))
        values = (one @ other.T / one.shape[1] + 1) ** 3
        self.kernels = own.T @ values @ others
        self.pairs = np.outer(own.sum(0), others.sum(0))

    def means(self, chosen: Numbers) -> Numbers:
        """Mean kernel (R,) over pairs of images of different prompts, with prompts taken so often: (R, P)."""
        return _apart(self.kernels, chosen) / _apart(self.pairs, chosen)


def kernel_distances(methods: Mapping[str, Rows], real: Rows, dense: str) -> dict[str, dict[str, Any]]:
    """The kernel distance of each method's images to real ones, and how much larger it is than that of dense's.

    Two images of one prompt are not independent, so only pairs of different prompts count, and prompts are resampled.
    The difference is between the images that both have; a method with too few of these is left out.

    Args:
        methods: rows with ``features``, by label; dense's among them.
        real: rows of real images; of a prompt's seeds the first counts, since others may show the same image.
    """
    shown, found = _first_of_each(real), {}
    of_dense: dict[frozenset[Any], Numbers] = {}  # by the images that count: nearly always the same
    for label, rows in methods.items():
        keys = [key for key in rows if key in methods[dense] and key[0] in shown]
        prompts = sorted({prompt for prompt, _ in keys})
        if len(prompts) < LEAST:
            continue
        chosen, against = _resampled(len(prompts)), {(prompt, 0): shown[prompt] for prompt in prompts}
        values = _distance({key: rows[key] for key in keys}, against, prompts, chosen)
        if (own := frozenset(keys)) not in of_dense:
            of_dense[own] = _distance({key: methods[dense][key] for key in keys}, against, prompts, chosen)
        difference = _interval(values - of_dense[own], len(keys))
        found[label] = {**_interval(values, len(keys)), "against_dense": difference}
    return found


def _first_of_each(real: Rows) -> dict[str, Any]:
    """By prompt."""
    found: dict[str, Any] = {}
    for (prompt, _), row in sorted(real.items(), key=lambda item: item[0], reverse=True):
        found[prompt] = row
    return found


def _resampled(count: int) -> Numbers:
    """How often each of so many prompts is taken: (1 + R, count), at first each of them once."""
    random = np.random.default_rng(0)
    chosen = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.vstack([np.ones(count), chosen]).astype(np.float64)


def _distance(own: Rows, real: Rows, prompts: list[str], chosen: Numbers) -> Numbers:
    within = Sums(own, own, prompts).means(chosen) + Sums(real, real, prompts).means(chosen)
    return within - 2 * Sums(own, real, prompts).means(chosen)


def _features(rows: Rows, prompts: list[str]) -> tuple[Numbers, Numbers]:
    """Features (images, C), and whose they are: (images, P) of zeros and ones."""
    number = {prompt: place for place, prompt in enumerate(prompts)}
    whose = np.zeros((len(rows), len(prompts)))
    whose[np.arange(len(rows)), [number[prompt] for prompt, _ in rows]] = 1
    return decode_features([row["features"] for row in rows.values()]).numpy(), whose


def _apart(sums: Numbers, chosen: Numbers) -> Numbers:
    """The sum over pairs of different prompts, each as often as its prompts are chosen."""
    together: Numbers = ((chosen @ sums) * chosen).sum(1) - chosen**2 @ sums.diagonal()
    return together


def _interval(values: Numbers, count: int) -> dict[str, float | int]:
    low, high = np.quantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(values[0]), float(low), float(high), count).to_dict()
