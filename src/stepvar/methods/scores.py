"""How much each token of a dense map matters: (B, N, C) features -> (B, N) scores in float32.

NaN features give NaN scores, which rank first: a broken token is computed and seen, not papered over. One NaN
spreads to every structure score of its image, since they share a mean.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.tokens import Grid

Normalisation = Literal["none", "mean", "max", "zscore"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "mean", "max", "zscore")

TINY = torch.finfo(torch.float32).tiny


def texture_energy(features: Tensor, grid: Grid) -> Tensor:
    """Energy of a 3x3 high-pass over each frame: ``sum_c (x - avgpool3x3(x))^2`` (StepVAR, texture score).

    At the border the average runs over the cells that exist, so that a constant map scores 0 everywhere.
    """
    rows, _, channels = features.shape
    frames = features.float().view(rows * grid.t, grid.h, grid.w, channels).permute(0, 3, 1, 2)
    low = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    return (frames - low).square().sum(dim=1).view(rows, grid.size)


def distance_to_mean(features: Tensor) -> Tensor:
    """Squared distance to the mean token: ``sum_c (x - mean x)^2`` (FastVAR, section 3)."""
    wide = features.float()
    return squared_norm(wide - wide.mean(dim=1, keepdim=True))


def squared_norm(features: Tensor) -> Tensor:
    """Squared length of each token, which ranks like its L2 norm: ``sum_c x^2``."""
    return features.float().square().sum(dim=-1)


def principal_direction(centred: Tensor, iterations: int) -> Tensor:
    """First principal component of centred features (B, N, C) by power iteration: unit vectors (B, C).

    The start is the token farthest from the mean: deterministic, and never orthogonal to the component that it
    dominates. Constant features have no direction and give zeros.
    """
    farthest = centred.square().sum(dim=-1).argmax(dim=1)
    direction = centred[torch.arange(len(centred), device=centred.device), farthest]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=TINY)
    for _ in range(iterations):
        projection = torch.bmm(centred, direction.unsqueeze(-1))
        direction = torch.bmm(centred.transpose(1, 2), projection).squeeze(-1)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=TINY)
    return direction


def structure_magnitude(features: Tensor, iterations: int) -> Tensor:
    """Magnitude of the projection on the first principal component: ``|x_c . v|`` (StepVAR, structure score)."""
    centred = features.float()
    centred = centred - centred.mean(dim=1, keepdim=True)
    direction = principal_direction(centred, iterations)
    return torch.bmm(centred, direction.unsqueeze(-1)).squeeze(-1).abs()


def normalise(scores: Tensor, how: Normalisation) -> Tensor:
    """Brings the scores (B, N) of each image to a common scale, so that different scores can be added."""
    if how == "mean":
        return scores / scores.mean(dim=1, keepdim=True).clamp(min=TINY)
    if how == "max":
        return scores / scores.amax(dim=1, keepdim=True).clamp(min=TINY)
    if how == "zscore":
        centred = scores - scores.mean(dim=1, keepdim=True)
        return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp(min=TINY)
    return scores


def top_tokens(scores: Tensor, count: int, always: Tensor | None = None) -> Tensor:
    """Indices (R, count) of the highest scores (R, N), ascending; ties go to the lower index.

    Args:
        always: (R, M) indices, no two alike in a row, that are taken first whatever they score; M <= count.
    """
    if always is not None:
        place = ranks(scores)
        scores = -place.scatter(1, always, place.gather(1, always) - scores.shape[1])
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values


def ranks(scores: Tensor) -> Tensor:
    """The place of each score (R, N) in its row, 0 for the highest; ties go to the lower index."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter(
        1, order, torch.arange(scores.shape[1], device=order.device).expand_as(order)
    )
