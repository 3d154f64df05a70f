"""From logits to symbols: guidance, truncation, and draws that no method can shift."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


def mix_branches(values: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: (2B, ...) conditional then unconditional -> (B, ...).

    ``guidance * conditional + (1 - guidance) * unconditional``.
    """
    conditional, unconditional = values.chunk(2)
    return guidance * conditional + (1 - guidance) * unconditional


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets the logits outside the top-k classes and outside the top-p mass to -inf.

    Ties with the k-th largest survive; the largest class always does.

    Args:
        logits: (..., classes).
        top_k: 0 keeps all.
        top_p: in [0, 1); 0 keeps all.
    """
    if top_k > 0:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    return logits


class Noise(Protocol):
    """A source of random variables for the draws of each scale.

    A scale that adds soft codes asks twice for exponential variables, for the draw first and then for the soft codes.
    """

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Exp(1) variables of the shape (B, N, ..., classes) for the scale with this index."""
        ...

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal variables of the shape (B, N, ...) for the scale with this index; ``turn`` counts from 0."""
        ...


class SeededNoise:
    """Draws that depend only on (seed, scale, position, class).

    Each image has a seed of its own, so image i of a batch gets the draws that it would get alone; each scale
    starts a stream of its own, so a method that skips scales or prunes tokens shifts nothing. The draws are made
    on the CPU, so they are the same on every device. Asked again for a scale, it gives the same numbers again: a soft
    code is then a softened form of the code drawn.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape[1:])
        draws = [torch.empty(size).exponential_(generator=_generator(f"{seed}/{scale}")) for seed in self.seeds]
        return torch.stack(draws).to(device, non_blocking=True)

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape[1:])
        streams = (_generator(f"{seed}/{scale}/normal/{turn}") for seed in self.seeds)
        draws = [torch.empty(size).normal_(generator=stream) for stream in streams]
        return torch.stack(draws).to(device, non_blocking=True)


def _generator(name: str) -> torch.Generator:
    """A stream of its own for each name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class StreamNoise:
    """One draw per scale from the caller's generator, in row-major order (batch, token, bit).

    This is the order of the published implementations, so their seeds give their samples on the same device type.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        draws = torch.empty(tuple(shape), device=self.generator.device)
        return draws.exponential_(generator=self.generator).to(device, non_blocking=True)

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
        draws = torch.empty(tuple(shape), device=self.generator.device)
        return draws.normal_(generator=self.generator).to(device, non_blocking=True)


def sample(logits: Tensor, noise: Noise, scale: int, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Draws one class per entry: logits (B, N, ..., classes) -> int64 (B, N, ...).

    ``argmax(p / e)`` with ``e`` ~ Exp(1) is a draw from ``p``; with ``top_k=1`` no draw is needed and the first of
    the most likely classes is taken.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    probabilities = truncate(logits, top_k, top_p).softmax(dim=-1)
    return (probabilities / noise.exponential(scale, logits.shape, logits.device)).argmax(dim=-1)


def soft_weights(
    logits: Tensor, noise: Noise, scale: int, progress: float, top_k: int = 0, top_p: float = 0.0
) -> Tensor:
    """Weights of all classes by a Gumbel softmax: logits (B, N, classes) -> float32 of the same shape, sums of 1.

    The temperature falls from 0.27 at the first scale (``progress`` 0) to 0.0135 at the last (1), and the logits
    are stretched by ``1 + progress``: ``softmax((logits (1 + progress) - log e) / temperature)`` with ``e`` ~ Exp(1).
    This is the option ``more_smooth`` of VAR.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    stretched = truncate(logits, top_k, top_p) * (1 + progress)
    gumbel = -noise.exponential(scale, logits.shape, logits.device).log()
    return ((stretched + gumbel) / temperature).softmax(dim=-1)
