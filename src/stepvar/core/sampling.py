"""From logits to indices: truncation, sampling by an exponential race, and soft codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Step

Sampler = Callable[[Tensor, Noise, Step], tuple[Tensor, Tensor | None]]
"""From the logits of a pass to its codes; :func:`sample_pass`, or what takes its place."""


def sample_pass(logits: Tensor, noise: Noise, step: Step) -> tuple[Tensor, Tensor | None]:
    """The indices (B, N, ...) of a pass, and the weights of soft codes (B, N, classes) where they are asked for.

    Args:
        logits: (B, N, ..., classes) in float32, with temperature and guidance applied.
    """
    settings = step.settings
    if step.relative_scale is None:
        return sample(logits, noise, step.index, step.top_k, settings.top_p), None
    if settings.smooth_filtered:
        return gumbel_sample(logits, noise, step.index, step.relative_scale, step.top_k, settings.top_p)
    weights = soft_weights(logits, noise.exponential(step.index, logits.shape, logits.device), step.relative_scale)
    return weights.argmax(dim=-1), weights


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets the logits outside the top-k classes and outside the top-p mass to -inf.

    Ties with the k-th largest survive; the largest class always does.

    Args:
        logits: (..., classes).
        top_k: 0 keeps all.
        top_p: in [0, 1); 0 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, sorted=False).values.amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    return logits


def sample(logits: Tensor, noise: Noise, scale: int, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Samples one class per entry: logits (B, N, ..., classes) -> int64 (B, N, ...).

    ``argmax(p / e)`` with ``e`` ~ Exp(1) is a sample of ``p``; with ``top_k=1`` no random numbers are needed and the
    first of the most likely classes is taken.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    return exponential_race(truncate(logits, top_k, top_p), noise.exponential(scale, logits.shape, logits.device))


def gumbel_sample(
    logits: Tensor, noise: Noise, scale: int, relative_scale: float, top_k: int = 0, top_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As :func:`sample`, and the weights of :func:`soft_weights` for the same logits (B, N, classes)."""
    kept = truncate(logits, top_k, top_p)
    drawn = noise.exponential(scale, logits.shape, logits.device)
    if top_k == 1:
        return logits.argmax(dim=-1), soft_weights(kept, drawn, relative_scale)
    return exponential_race(kept, drawn), soft_weights(kept, noise.soft(scale, drawn), relative_scale)


def exponential_race(logits: Tensor, exponential: Tensor) -> Tensor:
    """A sample (B, N, ...) of the distribution of logits (..., classes), by Exp(1) variables of the same shape."""
    return (logits.softmax(dim=-1) / exponential).argmax(dim=-1)


def weighted_choice(weights: Tensor, exponential: Tensor, count: int) -> Tensor:
    """Draws without replacement: indices (R, count), in the order in which they are drawn.

    Each draw takes one of those that are left with a probability in proportion to its weight: the ``count`` largest of
    ``weight / e`` with ``e`` ~ Exp(1), an exponential race (which ``torch.multinomial`` runs too).

    Args:
        weights: (R, N), not negative.
        exponential: Exp(1) variables of the same shape.
    """
    return (weights / exponential).sort(dim=1, descending=True, stable=True).indices[:, :count]


def soft_weights(logits: Tensor, exponential: Tensor, relative_scale: float) -> Tensor:
    """Weights of all classes by a Gumbel softmax: logits (B, N, classes) -> float32 of the same shape, sums of 1.

    The temperature falls from 0.27 at the first scale (``relative_scale`` 0) to 0.0135 at the last (1), and the logits
    are stretched by ``1 + relative_scale``: ``softmax((logits (1 + relative_scale) - log e) / temperature)`` with
    ``e`` ~ Exp(1). This is the option ``more_smooth`` of VAR.
    """
    temperature = max(0.27 * (1 - 0.95 * relative_scale), 0.005)
    return (logits * (1 + relative_scale) - exponential.log()).div_(temperature).softmax(dim=-1)
