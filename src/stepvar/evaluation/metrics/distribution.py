"""Distances between sets of images, from features of each image."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.utils.require import require


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets (FID, Heusel et al. 2017), by torchmetrics.

    Args:
        first, second: features (images, C) of the two sets, at least two images each.

    Raises:
        UsageError: for fewer images, or if torchmetrics is not installed.
    """
    _check_size(first, second)
    fid = require("torchmetrics.image.fid")

    class Given(torch.nn.Module):
        """In place of a network: what is measured are features already."""

        num_features = first.shape[1]

        def forward(self, features: Tensor) -> Tensor:
            return features

    metric = fid.FrechetInceptionDistance(feature=Given())
    metric.update(first.double().cpu(), real=True)
    metric.update(second.double().cpu(), real=False)
    return max(float(metric.compute()), 0.0)  # of equal sets, rounding may leave it just below 0


def kernel_distance(first: Tensor, second: Tensor, matched: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``(x.y / C + 1)^3`` (KID, Binkowski et al. 2018).

    Over all pairs of images, not over random subsets as in torchmetrics. It may come out below 0.

    Args:
        first, second: features (images, C) of the two sets, at least two images each.
        matched: whether image i of both shows the same prompt: such pairs are left out of the comparison, because
            they are not independent.

    Raises:
        UsageError: for fewer images, or matched sets of different sizes.
    """
    _check_size(first, second)
    if matched and len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} images: matched sets must be of one size")
    a, b = first.double(), second.double()
    channels = a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / channels + 1) ** 3

    def apart(values: Tensor) -> Tensor:
        """Mean over pairs of different images."""
        return (values.sum() - values.diagonal().sum()) / (len(values) * (len(values) - 1))

    across = kernel(a, b)
    return float(apart(kernel(a, a)) + apart(kernel(b, b)) - 2 * (apart(across) if matched else across.mean()))


def _check_size(first: Tensor, second: Tensor) -> None:
    if min(len(first), len(second)) < 2:
        raise UsageError(f"{len(first)} and {len(second)} images: a distance between sets needs at least 2 of each")
