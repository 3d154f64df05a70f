"""Random numbers for the noise floor of evaluations: other ones for the last scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.core.noise import Noise, SeededNoise

SHIFT = 1_000_003
"""Between a seed and the one that takes its place where scales are sampled again."""


class ResampledNoise:
    """The numbers of one noise for the early scales, those of another from scale ``first`` on.

    Dense images sampled with it show how far two equally good answers for the late scales lie apart: the noise floor
    of every fidelity figure.
    """

    def __init__(self, early: Noise, late: Noise, first: int) -> None:
        self.early, self.late, self.first = early, late, first

    @classmethod
    def of(cls, seeds: Sequence[int], first: int) -> ResampledNoise:
        """The numbers of ``seeds``, and from scale ``first`` on those of other seeds."""
        return cls(SeededNoise(seeds), SeededNoise([seed + SHIFT for seed in seeds]), first)

    def from_scale(self, first: int) -> ResampledNoise:
        """The same numbers, with another scale from which on they are the other ones."""
        return ResampledNoise(self.early, self.late, first)

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        return self._at(scale).exponential(scale, shape, device, name)

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return self._at(scale).soft(scale, drawn)

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        return self._at(scale).normal(scale, turn, shape, device)

    def _at(self, scale: int) -> Noise:
        return self.late if scale >= self.first else self.early
