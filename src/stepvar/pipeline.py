"""From prompts to pictures."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.checkpoints import LoadedModel, load_model
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Dense, Method, make_method
from stepvar.models.infinity import TextCondition
from stepvar.models.infinity.model import InfinityState
from stepvar.plan import Plan, Step
from stepvar.report import Recorder, Report
from stepvar.sampling import Noise, SeededNoise, StreamNoise
from stepvar.text import TextFeatures
from stepvar.tokens import ScaleSchedule

OutputType = Literal["pil", "np", "pt"]
PerScale = float | Sequence[float]


@dataclass(frozen=True)
class Output:
    """What a generation gives.

    Attributes:
        images: ``"pil"``: a list of PIL images; ``"np"``: (B, H, W, 3) uint8; ``"pt"``: (B, 3, H, W) in [0, 1].
        report: what it cost.
        seeds: the seed of each image; None when a generator was given.
        kept: per pruned scale its :class:`~stepvar.plan.Step` and a map (B, t, h, w) of the tokens kept, in [0, 1].
    """

    images: Any
    report: Report
    seeds: tuple[int, ...] | None
    kept: list[tuple[Step, Tensor]]


class Pipeline:
    """A text-to-image model with its text encoder, ready to draw."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.name = loaded.name
        self.model = loaded.model
        self.text_encoder = loaded.text_encoder
        self.defaults = loaded.defaults

    @classmethod
    def from_pretrained(cls, name: str | Path = "scenes") -> Pipeline:
        """Loads an embedded model by name, or a model folder.

        Raises:
            UsageError: if there is no such model.
            CheckpointError: if its files are missing, damaged or do not fit.
        """
        return cls(load_model(name))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Moves the model to a device or a precision, in place."""
        self.model.to(device=device, dtype=dtype)
        self.text_encoder.to(device=device)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        method: Method | str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: PerScale | None = None,
        guidance_at: Sequence[int] = (0,),
        temperature: PerScale | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        aspect_ratio: str | float = "1:1",
        resolution: str | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callable[[Step, InfinityState], None] | None = None,
    ) -> Output:
        """Draws one picture per prompt (times ``num_images_per_prompt``).

        Args:
            prompt: a prompt or a list of them.
            negative_prompt: what guidance leads away from; None: the model's learned null text.
            method: an acceleration method, or its name; None: dense.
            seed: one seed, from which image i uses ``seed + i``, or a list with one per image; None: drawn at
                random and reported. The same seed on the same device gives the same picture, alone or in a batch.
            generator: a stream to draw from instead, in the order of the published implementations.
            guidance_scale: classifier-free guidance, one number or one per scale; 1 turns it off.
            guidance_at: where the branches are mixed: 0 on the logits, -m after block ``depth - m``.
            temperature: one number or one per scale; lower is more decided.
            top_k, top_p: truncation before sampling; ``top_k=1`` takes the most likely.
            aspect_ratio: width to height, "3:2" or a number; the nearest published schedule is taken.
            resolution: name of a schedule, such as "0.25M"; None: the model's own.
            output_type: see :class:`Output`.
            callback_on_scale_end: called with the step and the running state after each scale;
                ``pipe.model.decode(state)`` shows the picture so far.

        Raises:
            UsageError: for an argument that cannot be used, before anything is computed.
        """
        prompts = _texts("prompt", prompt)
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt={num_images_per_prompt}: must be at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise UsageError(f"output_type={output_type!r}: must be one of pil, np, pt")
        negatives = _negatives(negative_prompt, len(prompts))
        samples = len(prompts) * num_images_per_prompt
        method = _method(method)
        seeds, noise = _noise(seed, generator, samples)
        plan = self._plan(
            self.schedule(aspect_ratio, resolution), guidance_scale, guidance_at, temperature, top_k, top_p
        )
        method.edit(plan)  # an impossible combination fails here, before any work

        recorder = Recorder(self.device)
        with recorder.stage("text"):
            condition = TextCondition(
                self._encode(prompts, num_images_per_prompt),
                None if negatives is None else self._encode(negatives, num_images_per_prompt),
            )
        state = generate(self.model, condition, samples, plan, method, noise, recorder, callback_on_scale_end)
        with recorder.stage("decode"):
            pixels = self.model.decode(state)
        report = recorder.report(
            self.name,
            str(method),
            samples,
            self.dtype,
            seeds=seeds,
            schedule=plan.schedule.name,
            settings=asdict(method),
        )
        return Output(to_images(pixels, output_type), report, seeds, recorder.kept_maps())

    def schedule(self, aspect_ratio: str | float = "1:1", resolution: str | None = None) -> ScaleSchedule:
        """The scale schedule that a generation with these settings runs."""
        return self.model.schedule(1 / parse_aspect_ratio(aspect_ratio), resolution)

    def _encode(self, prompts: Sequence[str], times: int) -> TextFeatures:
        return self.text_encoder.encode(prompts).repeat(times)

    def _plan(
        self,
        schedule: ScaleSchedule,
        guidance: PerScale | None,
        guidance_at: Sequence[int],
        temperature: PerScale | None,
        top_k: int | None,
        top_p: float | None,
    ) -> Plan:
        defaults = self.defaults
        top_k = defaults.get("top_k", 0) if top_k is None else top_k
        top_p = defaults.get("top_p", 0.0) if top_p is None else top_p
        if top_k < 0:
            raise UsageError(f"top_k={top_k}: must be 0 (all) or more")
        if not 0 <= top_p < 1:
            raise UsageError(f"top_p={top_p}: must be at least 0 (all) and below 1")
        guidance = defaults.get("guidance_scale", 3.0) if guidance is None else guidance
        temperature = defaults.get("temperature", 1.0) if temperature is None else temperature
        return Plan(
            schedule,
            guidance=_per_scale("guidance_scale", guidance, len(schedule), lowest=0.0),
            temperature=_per_scale("temperature", temperature, len(schedule), lowest=1e-6),
            guidance_at=self._places(guidance_at),
            top_k=top_k,
            top_p=top_p,
        )

    def _places(self, guidance_at: Sequence[int]) -> tuple[int, ...]:
        depth = self.model.config.depth
        for place in guidance_at:
            if not -depth < place <= 0:
                raise UsageError(f"guidance_at={place}: must be 0 (logits) or between -1 and -{depth - 1}")
        return tuple(guidance_at)


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


def to_images(pixels: Tensor, output_type: OutputType) -> Any:
    """Pixels (B, 3, H, W) in [-1, 1] -> images in the form asked for."""
    unit = (pixels.float() + 1) / 2
    if output_type == "pt":
        return unit
    array = (unit * 255).permute(0, 2, 3, 1).round().to(torch.uint8).cpu().numpy()
    return array if output_type == "np" else [Image.fromarray(np.ascontiguousarray(a)) for a in array]


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts:
        raise UsageError(f"{name}={given!r}: give a string or a list of strings")
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{name}: {text!r} is not a string")
        if not text.strip():
            raise UsageError(f"{name}={text!r}: is empty; say what to draw")
    return list(texts)


def _negatives(given: str | Sequence[str] | None, count: int) -> list[str] | None:
    if given is None:
        return None
    texts = _texts("negative_prompt", given)
    if len(texts) == 1:
        return texts * count
    if len(texts) != count:
        raise UsageError(f"negative_prompt: {len(texts)} given for {count} prompts; give one, or one each")
    return texts


def _method(method: Method | str | None) -> Method:
    if method is None:
        return Dense()
    if isinstance(method, str):
        return make_method(method)
    if not isinstance(method, Method):
        raise UsageError(f"method={method!r}: give a method such as StepVAR(), or its name")
    return method


def _noise(
    seed: int | Sequence[int] | None, generator: torch.Generator | None, samples: int
) -> tuple[tuple[int, ...] | None, Noise]:
    if generator is not None:
        if seed is not None:
            raise UsageError("seed and generator: give one of them")
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


def _per_scale(name: str, value: PerScale, scales: int, lowest: float) -> tuple[float, ...]:
    values = (float(value),) * scales if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(values) < scales:
        raise UsageError(f"{name}: {len(values)} values for {scales} scales; give one, or one per scale")
    for one in values:
        if not lowest <= one < float("inf"):
            raise UsageError(f"{name}={one}: must be a number of at least {lowest:g}")
    return values[:scales]
