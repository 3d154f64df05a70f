"""What a caller writes, checked, and as one value per pass."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepvar.core.guidance import GUIDANCE_TYPES, guidance_per_pass
from stepvar.core.noise import Noise, SeededNoise, StreamNoise
from stepvar.core.plan import Settings
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError

PerScale = float | Sequence[float]

LARGEST_SEED = 2**63 - 1


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
    """The seed of each sample, if there are seeds, and where random numbers come from.

    Raises:
        UsageError: if several sources are given, or seeds that are none.
    """
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
        if value > LARGEST_SEED:
            raise UsageError(f"seed={value}: must be at most {LARGEST_SEED}")
    return seeds, SeededNoise(seeds)


@dataclass(frozen=True)
class SamplingArguments:
    """The arguments of a call that say how to sample; None: as the model's authors do.

    Attributes:
        guidance_scale: classifier-free guidance, spread over the scales by ``guidance_schedule``, or one number per
            scale; 1 turns it off.
        guidance_schedule: a name of :data:`~stepvar.core.guidance.GUIDANCE_SCHEDULES`.
        guidance_type: a name of :data:`~stepvar.core.guidance.GUIDANCE_TYPES`.
        cfg_layers: where the branches are combined: 0 on the logits, -m after block ``depth - m``.
        temperature: one number or one per scale.
        top_k, top_p: truncation before sampling, ``top_k`` one number or one per scale.
        more_smooth: models with a codebook only: add soft codes.
    """

    guidance_scale: PerScale | None = None
    guidance_schedule: str | None = None
    guidance_type: str | None = None
    cfg_layers: Sequence[int] = (0,)
    temperature: PerScale | None = None
    top_k: int | Sequence[int] | None = None
    top_p: float | None = None
    more_smooth: bool | None = None

    def settings(
        self,
        schedule: ScaleSchedule,
        defaults: Mapping[str, Any],
        depth: int,
        guidance_schedule: str,
        soft_scales: Callable[[int], tuple[float, ...]],
    ) -> Settings:
        """The settings of a dense generation.

        Args:
            defaults: of the model, by the names of these arguments.
            depth: number of blocks of the model.
            guidance_schedule: that of the family, where neither the caller nor the defaults name one.
            soft_scales: from a number of passes to the relative scale of each, by which soft codes sharpen.

        Raises:
            UsageError: for an argument that cannot be used.
        """

        def given(name: str, default: Any) -> Any:
            value = getattr(self, name)
            return defaults.get(name, default) if value is None else value

        count = len(schedule)
        top_p = given("top_p", 0.0)
        if not 0 <= top_p < 1:
            raise UsageError(f"top_p={top_p}: must be at least 0 (all) and below 1")
        kind = given("guidance_type", "cfg")
        if kind not in GUIDANCE_TYPES:
            raise UsageError(f"guidance_type={kind!r}: must be one of {', '.join(GUIDANCE_TYPES)}")
        if not self.cfg_layers:
            raise UsageError("cfg_layers=(): guidance needs a place, 0 for the logits; guidance_scale=1 turns it off")
        for place in self.cfg_layers:
            if not -depth < place <= 0:
                raise UsageError(f"cfg_layers={place}: must be 0 (logits) or between -1 and -{depth - 1}")
        scale = checked_per_scale("guidance_scale", given("guidance_scale", 3.0), count, lowest=0.0)
        ramp = defaults.get("guidance_schedule", guidance_schedule)
        temperature = by_clip(defaults, schedule) if self.temperature is None else self.temperature
        return Settings(
            schedule,
            guidance=tuple(guidance_per_pass(scale, self.guidance_schedule, ramp, count)),
            temperature=per_scale("temperature", temperature, count, lowest=1e-6),
            cfg_layers=tuple(self.cfg_layers),
            top_k=checked_top_k(given("top_k", 0), count),
            top_p=top_p,
            smooth=soft_scales(count) if given("more_smooth", False) else (),
            combine=GUIDANCE_TYPES[kind],
        )


def checked_top_k(value: int | Sequence[int], scales: int) -> int | tuple[int, ...]:
    """One number, or one per scale.

    Raises:
        UsageError: if there are too few, or one is no whole number of at least 0.
    """
    values = [value] if isinstance(value, int) else list(value)
    for one in values:
        if not isinstance(one, int) or one < 0:
            raise UsageError(f"top_k={one!r}: must be a whole number, 0 (all) or more")
    if isinstance(value, int):
        return value
    if len(values) < scales:
        raise UsageError(f"top_k: {len(values)} values for {scales} scales; give one, or one per scale")
    return tuple(values[:scales])


def checked_per_scale(name: str, value: PerScale, scales: int, lowest: float) -> float | tuple[float, ...]:
    """One number as it is, or one per scale.

    Raises:
        UsageError: if there are too few, or one is below ``lowest`` or not finite.
    """
    values = (float(value),) if isinstance(value, (int, float)) else tuple(map(float, value))
    single = isinstance(value, (int, float))
    if not single and len(values) < scales:
        raise UsageError(f"{name}: {len(values)} values for {scales} scales; give one, or one per scale")
    for one in values:
        if not lowest <= one < float("inf"):
            raise UsageError(f"{name}={one}: must be a number of at least {lowest:g}")
    return values[0] if single else values[:scales]


def per_scale(name: str, value: PerScale, scales: int, lowest: float) -> tuple[float, ...]:
    """One number per scale; see :func:`checked_per_scale`."""
    checked = checked_per_scale(name, value, scales, lowest)
    return (checked,) * scales if isinstance(checked, float) else checked


def by_clip(defaults: Mapping[str, Any], schedule: ScaleSchedule) -> PerScale:
    """The default temperature: one number, or one per pass where a model has one per clip (the last for all later)."""
    value = defaults.get("temperature", 1.0)
    if not isinstance(value, Mapping):
        return value
    clips = value["clips"]
    return [clips[min(schedule.clip(index), len(clips) - 1)] for index in range(len(schedule))]


def make_generators(
    seeds: tuple[int, ...] | None, generator: torch.Generator | None, samples: int
) -> list[torch.Generator]:
    """For each sample what its encoding samples with: its own seed, the caller's stream, or else its place."""
    if seeds is None and generator is not None:
        return [generator] * samples
    return [torch.Generator().manual_seed(seed) for seed in seeds or range(samples)]
