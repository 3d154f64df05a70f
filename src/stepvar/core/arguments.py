"""What a caller writes, checked, and as one value per pass."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch

from stepvar.core.guidance import GUIDANCE_TYPES, guidance_per_pass
from stepvar.core.noise import Noise, SeededNoise, StreamNoise
from stepvar.core.plan import Settings
from stepvar.core.tokens import ScaleSchedule
from stepvar.core.values import Range, as_list, as_plain, check_fields, shown, whole_number
from stepvar.errors import UsageError

PerScale = float | Sequence[float]

LARGEST_SEED = 2**63 - 1
SEED = Range(0, LARGEST_SEED)

Number = TypeVar("Number", int, float)

AspectRatio = str | float | Sequence[float]
GeneratorLike = torch.Generator | Sequence[torch.Generator]


def parse_aspect_ratio(ratio: AspectRatio) -> float:
    """Width over height from "3:2", "3/2", "1.5", a number, or a pair (3, 2).

    Raises:
        UsageError: if it is not a ratio of positive numbers.
    """
    plain = as_plain(ratio)
    pair: Any = re.split("[:/]", plain) if isinstance(plain, str) else as_list(plain)
    try:
        if pair is not None and len(pair) == 2:
            value = float(pair[0]) / float(pair[1])
        else:
            value = 0.0 if isinstance(plain, bool) else float(plain)
    except (ValueError, TypeError, ArithmeticError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"aspect_ratio={shown(ratio)}: give width to height, such as 3:2 or 1.5")
    return value


def make_noise(
    seed: int | Sequence[int] | None, generator: GeneratorLike | None, samples: int, noise: Noise | None = None
) -> tuple[tuple[int, ...] | None, Noise]:
    """The seed of each sample, if there are seeds, and where random numbers come from.

    Raises:
        UsageError: if several sources are given, or seeds that are none.
    """
    if sum(source is not None for source in (seed, generator, noise)) > 1:
        raise UsageError("seed, generator and noise: give one of them")
    if noise is not None:
        if not callable(getattr(noise, "exponential", None)):
            raise UsageError(f"noise={shown(noise)}: give a source such as stepvar.core.noise.SeededNoise([1])")
        return None, noise
    if generator is not None:
        return None, StreamNoise(_generators(generator, samples))
    seeds = checked_seeds(secrets.randbelow(2**31) if seed is None else seed, samples)
    return seeds, SeededNoise(seeds)


def checked_seeds(seed: Any, samples: int) -> tuple[int, ...]:
    """A seed for each sample: those given, or one and its followers.

    Raises:
        UsageError: for anything but whole numbers from 0 to :data:`LARGEST_SEED`, or not one for each sample.
    """
    several = as_list(seed)
    if several is None:
        first = whole_number("seed", seed, SEED)
        several = [first + index for index in range(samples)]
    if len(several) != samples:
        raise UsageError(f"seed: {len(several)} seeds for {samples} images; give one, or one per image")
    return tuple(whole_number("seed", one, SEED) for one in several)


def _generators(given: Any, samples: int) -> GeneratorLike:
    """A generator for the whole batch, or a list with one for each image, as diffusers takes them."""
    if isinstance(given, torch.Generator):
        return given
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in given):
        raise UsageError(f"generator={shown(given)}: give a torch.Generator, or a list with one per image")
    if len(given) != samples:
        raise UsageError(f"generator: {len(given)} generators for {samples} images; give one, or one per image")
    return list(given)


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

    guidance_scale: Annotated[PerScale | None, Range(0, 1000)] = None
    guidance_schedule: str | None = None
    guidance_type: str | None = None
    cfg_layers: Annotated[int | Sequence[int], Range(-1000, 1000)] = (0,)
    temperature: Annotated[PerScale | None, Range(1e-6, 1000)] = None
    top_k: Annotated[int | Sequence[int] | None, Range(0, 2**31, note="0: all")] = None
    top_p: Annotated[float | None, Range(least=0, below=1, note="0: all")] = None
    more_smooth: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def settings(
        self,
        schedule: ScaleSchedule,
        defaults: Mapping[str, Any],
        depth: int,
        guidance_schedule: str,
        soft_scales: Callable[[int], tuple[float | None, ...]],
        soft_filtered: bool = True,
    ) -> Settings:
        """The settings of a dense generation.

        Args:
            defaults: of the model, by the names of these arguments.
            depth: number of blocks of the model.
            guidance_schedule: that of the family, where neither the caller nor the defaults name one.
            soft_scales: from a number of passes to the relative scale of each, by which soft codes sharpen; None: its
                codes are sampled.
            soft_filtered: whether soft codes blend only what top-k and top-p keep.

        Raises:
            UsageError: for an argument that cannot be used.
        """

        count = len(schedule)

        def given(name: str, default: Any) -> Any:
            value = getattr(self, name)
            if value is not None:
                return value
            value = defaults.get(name)
            value = default if value is None else value
            return value[:count] if isinstance(value, (list, tuple)) else value  # of a longer schedule

        cfg_layers = (self.cfg_layers,) if isinstance(self.cfg_layers, int) else tuple(self.cfg_layers)
        kind = given("guidance_type", "cfg")
        if kind not in GUIDANCE_TYPES:
            raise UsageError(f"guidance_type={kind!r}: must be one of {', '.join(GUIDANCE_TYPES)}")
        if not cfg_layers:
            raise UsageError("cfg_layers=(): guidance needs a place, 0 for the logits; guidance_scale=1 turns it off")
        for place in cfg_layers:
            if not -depth < place <= 0:
                raise UsageError(f"cfg_layers={place}: must be 0 (logits) or between -1 and -{depth - 1}")
        scale = one_or_per_scale("guidance_scale", given("guidance_scale", 3.0), count)
        ramp = defaults.get("guidance_schedule", guidance_schedule)
        temperature = by_clip(defaults, schedule) if self.temperature is None else self.temperature
        return Settings(
            schedule,
            guidance=tuple(guidance_per_pass(scale, self.guidance_schedule, ramp, count)),
            temperature=per_scale("temperature", temperature, count),
            cfg_layers=cfg_layers,
            top_k=one_or_per_scale("top_k", given("top_k", 0), count),
            top_p=given("top_p", 0.0),
            smooth=soft_scales(count) if given("more_smooth", False) else (),
            smooth_filtered=soft_filtered,
            combine=GUIDANCE_TYPES[kind],
            full_guidance=float(scale) if isinstance(scale, (int, float)) else None,
        )


def one_or_per_scale(name: str, value: Number | Sequence[Number], scales: int) -> Number | tuple[Number, ...]:
    """One number as it is, or as many as there are scales.

    Raises:
        UsageError: if there are more or fewer.
    """
    if isinstance(value, (int, float)):
        return value
    if len(value) != scales:
        raise UsageError(f"{name}: {len(value)} values for {scales} scales; give one, or one per scale")
    return tuple(value)


def per_scale(name: str, value: PerScale, scales: int) -> tuple[float, ...]:
    """One number per scale; see :func:`one_or_per_scale`."""
    found = one_or_per_scale(name, value, scales)
    return found if isinstance(found, tuple) else (found,) * scales


def by_clip(defaults: Mapping[str, Any], schedule: ScaleSchedule) -> PerScale:
    """The default temperature: one number, or one per pass where a model has one per clip (the last for all later).

    Of one per scale of a longer schedule the last ones are taken: it is the late scales that are sampled otherwise.
    """
    value = defaults.get("temperature", 1.0)
    if isinstance(value, Sequence):
        return value[-len(schedule) :]
    if not isinstance(value, Mapping):
        return value
    clips = value["clips"]
    return [clips[min(schedule.clip(index), len(clips) - 1)] for index in range(len(schedule))]


def make_generators(
    seeds: tuple[int, ...] | None, generator: GeneratorLike | None, samples: int
) -> list[torch.Generator]:
    """For each sample what its encoding samples with: its own seed, the caller's stream, or else its place."""
    if seeds is None and generator is not None:
        return [generator] * samples if isinstance(generator, torch.Generator) else list(generator)
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds or range(samples)]
