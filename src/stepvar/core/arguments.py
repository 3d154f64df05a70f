"""The settings of a generation, from what a caller writes to one value per pass."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stepvar.core.sampling import Noise, SeededNoise, StreamNoise
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError

PerScale = float | Sequence[float]


def parse_aspect_ratio(ratio: str | float) -> float:
    """Width over height from "3:2", "1.5" or a number.

    Raises:
        UsageError: if it is not a ratio of positive numbers.
    """
    try:
        if isinstance(ratio, str) and ":" in ratio:
            width, height = ratio.split(":")
            value = float(width) / float(height)
        else:
            value = float(ratio)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"aspect_ratio={ratio!r}: give width to height, such as 3:2 or 1.5")
    return value


def make_noise(
    seed: int | Sequence[int] | None, generator: torch.Generator | None, samples: int, noise: Noise | None = None
) -> tuple[tuple[int, ...] | None, Noise]:
    if sum(source is not None for source in (seed, generator, noise)) > 1:
        raise UsageError("seed, generator and noise: give one of them")
    if noise is not None:
        return None, noise
    if generator is not None:
        return None, StreamNoise(generator)
    if seed is None:
        seed = secrets.randbelow(2**31)
    seeds = tuple(seed + i for i in range(samples)) if isinstance(seed, int) else tuple(seed)
    if len(seeds) != samples:
        raise UsageError(f"seed: {len(seeds)} seeds for {samples} images; give one, or one per image")
    for value in seeds:
        if not isinstance(value, int) or value < 0:
            raise UsageError(f"seed={value!r}: must be a whole number, 0 or more")
    return seeds, SeededNoise(seeds)


def checked_top_k(value: int | Sequence[int], scales: int) -> int | tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    for one in values:
        if not isinstance(one, int) or one < 0:
            raise UsageError(f"top_k={one!r}: must be a whole number, 0 (all) or more")
    if isinstance(value, int):
        return value
    if len(values) < scales:
        raise UsageError(f"top_k: {len(values)} values for {scales} scales; give one, or one per scale")
    return tuple(values[:scales])


def per_scale(name: str, value: PerScale, scales: int, lowest: float) -> tuple[float, ...]:
    values = (float(value),) * scales if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(values) < scales:
        raise UsageError(f"{name}: {len(values)} values for {scales} scales; give one, or one per scale")
    for one in values:
        if not lowest <= one < float("inf"):
            raise UsageError(f"{name}={one}: must be a number of at least {lowest:g}")
    return values[:scales]


def by_clip(value: Any, schedule: ScaleSchedule) -> PerScale:
    """A default as one number, or one per pass where a model has one per clip; the last one holds for all later."""
    if not isinstance(value, Mapping):
        return value
    clips = value["clips"]
    return [clips[min(schedule.clip(index), len(clips) - 1)] for index in range(len(schedule))]


def make_generators(
    seeds: tuple[int, ...] | None, generator: torch.Generator | None, samples: int
) -> list[torch.Generator]:
    """For each sample what its encoding draws from: its own seed, the caller's stream, or else its place."""
    if seeds is None and generator is not None:
        return [generator] * samples
    return [torch.Generator().manual_seed(seed) for seed in seeds or range(samples)]
