"""From logits to symbols: guidance, truncation, and draws that no method can shift."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from stepvar.utils.device import to_device_async
from stepvar.utils.hashing import high_bits, mix_, signed

CPU_PIECE, DEVICE_PIECE = 2**15 - 1, 2**22
"""How many numbers are hashed at once, so that what is between the steps stays in the cache.

On the CPU PyTorch runs operations of this size in one thread. More threads would have to meet behind each of thousands
of operations, which takes seconds where other processes use the cores, too.
"""


def classifier_free_guidance(values: Tensor, guidance: float) -> Tensor:
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
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, sorted=False).values.amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    return logits


class Noise(Protocol):
    """A source of random variables for the draws of each scale."""

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Exp(1) variables of the shape (B, N, ..., classes) for the scale with this index."""
        ...

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        """Exp(1) variables for the soft codes of a scale, behind those that its symbols were ``drawn`` with."""
        ...

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal variables of the shape (B, N, ...) for the scale with this index; ``turn`` counts from 0."""
        ...


class SeededNoise:
    """Draws that depend only on (seed, scale, position, class).

    Each image has a seed of its own, so image i of a batch gets the draws that it would get alone; each scale
    starts a stream of its own, so a method that skips scales or prunes tokens shifts nothing. Asked again for a scale,
    it gives the same numbers again, and soft codes take those of the symbols: a soft code is a softened form of the
    code drawn.

    The few numbers of bits (two classes) and of residuals are drawn on the CPU. Codebooks have thousands of classes,
    of which a CPU draws a large scale more slowly than a GPU runs it: their numbers are hashed on the device of the
    logits. The integers are the same on every device, their logarithms up to rounding.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape[1:])
        names = [f"{seed}/{scale}" for seed in self.seeds]
        if size[-1] > 2:
            return _hashed(names, prod(size), device).view(-1, *size)
        draws = [torch.empty(size).exponential_(generator=_generator(name)) for name in names]
        return to_device_async(torch.stack(draws), device)

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return drawn

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape[1:])
        streams = (_generator(f"{seed}/{scale}/normal/{turn}") for seed in self.seeds)
        draws = [torch.empty(size).normal_(generator=stream) for stream in streams]
        return to_device_async(torch.stack(draws), device)


def _digest(name: str) -> bytes:
    """64 bits of its own for each name."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _generator(name: str) -> torch.Generator:
    """A stream of its own for each name."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(name), "little") >> 1)


def _hashed(names: Sequence[str], count: int, device: torch.device) -> Tensor:
    """Exp(1) variables (B, count), a row for each name; each depends on its name and its place in the row alone."""
    words = [[signed(int.from_bytes(_digest(name)[at : at + 4], "little")) for at in (0, 4)] for name in names]
    # With the first word alone all rows would be windows of one sequence, some of which overlap.
    starts, keys = to_device_async(torch.tensor(words, dtype=torch.int32).view(len(names), 2), device).split(1, dim=1)
    draws = torch.empty(len(names), count, device=device)
    piece = max(1, min(count, (CPU_PIECE if device.type == "cpu" else DEVICE_PIECE) // max(1, len(names))))
    counter = torch.arange(piece, dtype=torch.int32, device=device)
    bits, spare = torch.empty(2, len(names), piece, dtype=torch.int32, device=device)
    for first, part in zip(range(0, count, piece), draws.split(piece, dim=1), strict=True):
        width = part.shape[1]
        value, left = bits[:, :width], spare[:, :width]
        torch.add(counter[:width], starts + signed(first), out=value)
        # 23 bits and a half are exact in float32, also near 1: no logarithm is 0 or infinite.
        part.copy_(high_bits(mix_(value, keys, left), 23, out=left)).add_(0.5).mul_(2.0**-23)
    return draws.log_().neg_()


class StreamNoise:
    """One draw per scale from the caller's generator, in row-major order (batch, token, bit); another for soft codes.

    This is the order of the published implementations, so their seeds give their samples on the same device type.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        draws = torch.empty(tuple(shape), device=self.generator.device)
        return draws.exponential_(generator=self.generator).to(device, non_blocking=True)

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return self.exponential(scale, drawn.shape, drawn.device)

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
    return _exponential_race(truncate(logits, top_k, top_p), noise.exponential(scale, logits.shape, logits.device))


def gumbel_sample(
    logits: Tensor, noise: Noise, scale: int, progress: float, top_k: int = 0, top_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As :func:`sample`, and the weights of :func:`soft_weights` for the same logits (B, N, classes)."""
    kept = truncate(logits, top_k, top_p)
    drawn = noise.exponential(scale, logits.shape, logits.device)
    if top_k == 1:
        return logits.argmax(dim=-1), soft_weights(kept, drawn, progress)
    return _exponential_race(kept, drawn), soft_weights(kept, noise.soft(scale, drawn), progress)


def _exponential_race(logits: Tensor, exponential: Tensor) -> Tensor:
    return (logits.softmax(dim=-1) / exponential).argmax(dim=-1)


def soft_weights(logits: Tensor, exponential: Tensor, progress: float) -> Tensor:
    """Weights of all classes by a Gumbel softmax: logits (B, N, classes) -> float32 of the same shape, sums of 1.

    The temperature falls from 0.27 at the first scale (``progress`` 0) to 0.0135 at the last (1), and the logits
    are stretched by ``1 + progress``: ``softmax((logits (1 + progress) - log e) / temperature)`` with ``e`` ~ Exp(1).
    This is the option ``more_smooth`` of VAR.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    return (logits * (1 + progress) - exponential.log()).div_(temperature).softmax(dim=-1)
