"""How far all pictures of a method are from real ones, with an interval: no judge, and no dense image to be near to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.metrics.scenes import decode_features
from stepvar.evaluation.statistics import LEVEL, RESAMPLES, Interval
from stepvar.evaluation.summary import Rows

Numbers = NDArray[np.float64]


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


def kernel_distances(methods: dict[str, Rows], real: Rows, dense: str) -> dict[str, dict[str, Any]]:
    """The kernel distance of each method's images to real ones, and how much larger it is than dense's.

    Two images of one prompt are not independent, so only pairs of different prompts count, and prompts are resampled.

    Args:
        methods: rows with ``features``, by label; dense's among them.
        real: rows of real images of the same prompts; those of further seeds may be the same images, and are left out.
    """
    own = {key: row for key, row in real.items() if key[1] == min(seed for _, seed in real)}
    prompts = sorted({prompt for prompt, _ in own})
    random = np.random.default_rng(0)
    chosen = random.multinomial(len(prompts), [1 / len(prompts)] * len(prompts), size=RESAMPLES).astype(np.float64)
    chosen = np.vstack([np.ones(len(prompts)), chosen])  # first as they are
    among_real = Sums(own, own, prompts).means(chosen)
    found = {
        label: Sums(rows, rows, prompts).means(chosen) + among_real - 2 * Sums(rows, own, prompts).means(chosen)
        for label, rows in methods.items()
    }
    return {
        label: {
            **_interval(values, len(methods[label])),
            "against_dense": _interval(values - found[dense], len(prompts)),
        }
        for label, values in found.items()
    }


def _features(rows: Rows, prompts: list[str]) -> tuple[Numbers, Numbers]:
    """Features (images, C), and whose they are: (images, P) of zeros and ones."""
    kept = {key: row for key, row in rows.items() if key[0] in set(prompts)}
    number = {prompt: place for place, prompt in enumerate(prompts)}
    whose = np.zeros((len(kept), len(prompts)))
    whose[np.arange(len(kept)), [number[prompt] for prompt, _ in kept]] = 1
    return decode_features([row["features"] for row in kept.values()]).numpy(), whose


def _apart(sums: Numbers, chosen: Numbers) -> Numbers:
    together: Numbers = ((chosen @ sums) * chosen).sum(1) - chosen**2 @ sums.diagonal()
    return together


def _interval(values: Numbers, count: int) -> dict[str, float | int]:
    low, high = np.quantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(values[0]), float(low), float(high), count).to_dict()
