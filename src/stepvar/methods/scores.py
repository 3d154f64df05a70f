"""Scores of the tokens of a dense map, (R, N) in float32, and the choice of the highest.

NaN features give NaN scores, which rank first: a broken token is computed and seen, not papered over.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.errors import UsageError

Normalisation = Literal["none", "mean", "max", "zscore"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "mean", "max", "zscore")

TINY = torch.finfo(torch.float32).tiny


def checked_scores(scores: Tensor, features: Tensor, name: str, step: Step) -> Tensor:
    """The scores that a method gave to features (R, N, C), if they are one finite float32 number for each token.

    Whether they are finite is asked on the CPU only: elsewhere the answer would have to wait for the device at every
    selection. There a score that is NaN ranks first, as it does where the features are not finite themselves.

    Args:
        name: of the method, for errors.

    Raises:
        UsageError: if they are not.
    """
    expected, place = tuple(features.shape[:2]), f"at pass {step.index} ({step.grid})"
    if not isinstance(scores, Tensor):
        raise UsageError(f"method {name!r}: score() gave a {type(scores).__name__} {place}; give a tensor {expected}")
    if tuple(scores.shape) != expected or scores.dtype != torch.float32:
        raise UsageError(
            f"method {name!r}: score() gave {scores.dtype} of shape {tuple(scores.shape)} {place}; "
            f"give torch.float32 of shape {expected}, one score for each token"
        )
    if scores.device.type == "cpu" and not scores.isfinite().all() and features.isfinite().all():
        raise UsageError(
            f"method {name!r}: score() gave NaN or infinity {place}, though all features are finite; "
            "look for divisions by zero, logarithms and sums that overflow"
        )
    return scores


def distance_to_mean(features: Tensor) -> Tensor:
    """Squared distance to the mean token: ``sum_c (x - mean x)^2`` (FastVAR, section 3)."""
    wide = features.float()
    return squared_norm(wide - wide.mean(dim=1, keepdim=True))


def squared_norm(features: Tensor) -> Tensor:
    """Squared length of each token, which ranks like its L2 norm: ``sum_c x^2``."""
    return features.float().square().sum(dim=-1)


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
