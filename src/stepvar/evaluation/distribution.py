"""Distances between sets of pictures, from features of each picture."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepvar.errors import UsageError


@dataclass
class Moments:
    """Sums from which mean and covariance of features follow; sets of pictures can be added up.

    Attributes:
        count: number of pictures.
        total: (C,) sum of the features.
        outer: (C, C) sum of their outer products.
    """

    count: int
    total: NDArray[np.float64]
    outer: NDArray[np.float64]

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (B, C)."""
        wide = features.detach().double()
        return cls(len(wide), wide.sum(0).cpu().numpy(), (wide.T @ wide).cpu().numpy())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased.

        Raises:
            UsageError: of fewer than two pictures.
        """
        if self.count < 2:
            raise UsageError(f"{self.count} pictures: a covariance needs at least 2")
        mean = self.mean
        spread: NDArray[np.float64] = (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return spread

    def encode(self) -> dict[str, int | str]:
        """As JSON: half of the symmetric matrix, in base64 of float32 (rounding is far below chance)."""
        upper = self.outer[np.triu_indices(len(self.total))]
        packed = np.concatenate((self.total, upper)).astype("<f4").tobytes()
        return {"count": self.count, "size": len(self.total), "sums": base64.b64encode(packed).decode()}

    @classmethod
    def decode(cls, stored: dict[str, int | str]) -> Moments:
        """What :meth:`encode` wrote."""
        size = int(stored["size"])
        sums = np.frombuffer(base64.b64decode(str(stored["sums"])), dtype="<f4").astype(np.float64)
        upper = np.zeros((size, size))
        upper[np.triu_indices(size)] = sums[size:]
        return cls(int(stored["count"]), sums[:size], upper + np.triu(upper, 1).T)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Fréchet distance of two Gaussians with the means and covariances of two sets (FID, Heusel et al. 2017).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``; the trace of the root is the sum of the roots of the
    eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which is symmetric.
    """
    a, b = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    shift = first.mean - second.mean
    return float(max(shift @ shift + np.trace(a) + np.trace(b) - 2 * trace, 0.0))


def kernel_distance(first: Tensor, second: Tensor, matched: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``(x.y / C + 1)^3`` (KID, Binkowski et al. 2018).

    Args:
        first, second: features (B, C) of the two sets, at least two pictures each. It may come out below 0.
        matched: whether picture i of both shows the same prompt: such pairs are left out of the comparison, because
            they are not independent.

    Raises:
        UsageError: for fewer, or matched sets of different sizes.
    """
    if min(len(first), len(second)) < 2:
        raise UsageError(f"{len(first)} and {len(second)} pictures: the kernel distance needs at least 2 of each")
    if matched and len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} pictures: matched sets must be of one size")
    with torch.no_grad():
        return float(squared_discrepancy(first, second, matched))


def squared_discrepancy(first: Tensor, second: Tensor, matched: bool = False) -> Tensor:
    """:func:`kernel_distance` as a number on the device, so that nothing waits for it."""
    a, b = first.double(), second.double()
    channels = a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / channels + 1) ** 3

    def apart(values: Tensor) -> Tensor:
        """Mean over pairs of different pictures."""
        return (values.sum() - values.diagonal().sum()) / (len(values) * (len(values) - 1))

    across = kernel(a, b)
    return apart(kernel(a, a)) + apart(kernel(b, b)) - 2 * (apart(across) if matched else across.mean())
