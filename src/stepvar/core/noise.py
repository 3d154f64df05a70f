"""Random numbers tied to (seed, scale, position, class): no method can shift them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from stepvar.kernels.random import FORMAT, exponential
from stepvar.utils.device import to_device_async
from stepvar.utils.hashing import signed

Draw = Callable[[Sequence[str], int, torch.device], Tensor]
"""Random variables (B, count) on a device, a row for each name."""


class Noise(Protocol):
    """A source of random variables for the draws of each scale."""

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        """Exp(1) variables of the shape (B, N, ..., classes) for the scale with this index.

        Args:
            name: of another draw, each with numbers of its own; None: those that codes are sampled with.
        """
        ...

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        """Exp(1) variables for the soft codes of a scale, after those that its symbols were ``drawn`` with."""
        ...

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal variables of the shape (B, N, ...) for the scale with this index.

        Args:
            turn: which draw of the model, from 0; or the name of a draw that a method makes.
        """
        ...


class SeededNoise:
    """Draws that depend only on (seed, scale, position, class).

    Each image has a seed of its own, so image i of a batch gets the draws that it would get alone; each scale
    starts a stream of its own, so a method that skips scales or prunes tokens shifts nothing. Asked again for a scale,
    it gives the same numbers again, and soft codes take those of the symbols: a soft code is a softened form of the
    code sampled.

    They are hashed on the device of the logits: a host that draws those of a large batch takes longer than a GPU takes
    for the images. The integers are the same on every device, their logarithms up to rounding.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        return self._drawn(_exponential, f"{scale}" if name is None else f"{scale}/exponential/{name}", shape, device)

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return drawn

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        return self._drawn(_normal, f"{scale}/normal/{turn}", shape, device)

    def _drawn(self, draw: Draw, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape[1:])
        return draw([f"{seed}/{name}" for seed in self.seeds], prod(size), device).view(len(self.seeds), *size)


def _digest(name: str) -> bytes:
    """64 bits of its own for each name."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _exponential(names: Sequence[str], count: int, device: torch.device) -> Tensor:
    """Exp(1) variables (B, count), a row for each name; each depends on its name and its place in the row alone."""
    digests = [_digest(name) for name in names]
    words = [[signed(int.from_bytes(digest[at : at + 4], "little")) for at in (0, 4)] for digest in digests]
    table = torch.tensor(words, dtype=torch.int32, device="cpu").view(len(names), 2)
    return exponential(to_device_async(table, device), count)


def _normal(names: Sequence[str], count: int, device: torch.device) -> Tensor:
    """Standard normal variables (B, count), each from two exponential ones of its place (Box and Muller)."""
    radius = _exponential(names, count, device).mul_(2).sqrt_()
    angle = _exponential([f"{name}/angle" for name in names], count, device)
    angle = angle.neg_().exp_().mul_(2 * math.pi)  # the exponential of minus an Exp(1) variable is uniform
    return radius.mul_(angle.cos_())


class StreamNoise:
    """One draw per scale, or per step of one, from the caller's generator, in row-major order (batch, token, bit).

    Soft codes take another.

    This is the order of the published implementations, so their seeds give their samples on the same device type.

    Args:
        generator: one for the whole batch, or one for each image, which then gets what it would get alone.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator]) -> None:
        self.generators = (generator,) if isinstance(generator, torch.Generator) else tuple(generator)

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        return self._drawn(shape, device, lambda draws, stream: draws.exponential_(generator=stream))

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return self.exponential(scale, drawn.shape, drawn.device)

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        return self._drawn(shape, device, lambda draws, stream: draws.normal_(generator=stream))

    def _drawn(
        self, shape: Sequence[int], device: torch.device, draw: Callable[[Tensor, torch.Generator], Tensor]
    ) -> Tensor:
        size = tuple(shape)
        if len(self.generators) > 1:
            size = (1, *size[1:])
        draws = [draw(torch.empty(size, dtype=FORMAT, device=one.device), one) for one in self.generators]
        moved = [part.to(device, non_blocking=True) for part in draws]
        return moved[0] if len(moved) == 1 else torch.cat(moved)
