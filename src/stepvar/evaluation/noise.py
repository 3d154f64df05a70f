"""Random numbers for evaluations: kept in memory, and other ones for the last scales of the noise floor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.core.noise import Noise, SeededNoise

SHIFT = 1_000_003
"""Between a seed and the one that takes its place where scales are sampled again."""


class CachedNoise:
    """The numbers of another noise, made once and kept on the device: many methods sample with the same ones.

    Those that a method names are its own, and may be many: they are not kept.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.kept: dict[tuple[object, ...], Tensor] = {}

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        if name is not None:  # steps of a scale, each as large as the scale
            return self.noise.exponential(scale, shape, device, name)
        key = ("exponential", scale, *shape)
        if key not in self.kept:
            self.kept[key] = self.noise.exponential(scale, shape, device)
        return self.kept[key]

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return drawn

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        if isinstance(turn, str):
            return self.noise.normal(scale, turn, shape, device)
        key = ("normal", scale, turn, *shape)
        if key not in self.kept:
            self.kept[key] = self.noise.normal(scale, turn, shape, device)
        return self.kept[key]


class ResampledNoise:
    """The numbers of one noise for the early scales, those of another from scale ``first`` on.

    Dense images sampled with it show how far two equally good answers for the late scales lie apart: the noise floor
    of every fidelity figure.
    """

    def __init__(self, early: Noise, late: Noise, first: int) -> None:
        self.early, self.late, self.first = early, late, first

    @classmethod
    def of(cls, seeds: Sequence[int], first: int) -> ResampledNoise:
        """The numbers of ``seeds``, and from scale ``first`` on those of other seeds; kept for all that ask again."""
        late = SeededNoise([seed + SHIFT for seed in seeds])
        return cls(CachedNoise(SeededNoise(seeds)), CachedNoise(late), first)

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
