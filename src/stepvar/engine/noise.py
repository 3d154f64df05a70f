"""Random numbers for a captured pass: drawn before each replay into tensors that keep their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepvar.core.noise import Noise, SeededNoise


class NoiseTape:
    """A noise source that remembers what was asked of it, and can fill the same tensors with other numbers.

    A graph must not draw by itself: it would repeat its numbers. So while a pass is captured, the tape hands out empty
    tensors; before a replay :meth:`fill` draws new numbers into them.
    """

    def __init__(self, noise: Noise) -> None:
        # Soft codes of a seeded source reuse the numbers of the sampled codes; other sources draw again.
        self._reuses = isinstance(noise, SeededNoise)
        self._asked: list[tuple[Tensor, Callable[[Noise], Tensor]]] = []

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape)
        return self._hand_out(torch.empty(size, device=device), lambda noise: noise.exponential(scale, size, device))

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        if self._reuses:
            return drawn
        return self._hand_out(torch.empty_like(drawn), lambda noise: noise.soft(scale, drawn))

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape)
        return self._hand_out(torch.empty(size, device=device), lambda noise: noise.normal(scale, turn, size, device))

    def fill(self, noise: Noise) -> None:
        """Draws new numbers, in the order in which they were asked for."""
        for tensor, draw in self._asked:
            tensor.copy_(draw(noise), non_blocking=True)

    def _hand_out(self, tensor: Tensor, draw: Callable[[Noise], Tensor]) -> Tensor:
        self._asked.append((tensor, draw))
        return tensor
