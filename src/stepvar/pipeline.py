"""From prompts to pictures."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from stepvar.models.conditioning import Subject
from stepvar.models.registry import FAMILIES
from stepvar.plan import Plan, Step
from stepvar.progress import scale_bar
from stepvar.report import Recorder, Report
from stepvar.sampling import Noise, SeededNoise, StreamNoise
from stepvar.text import CachedEncoder, T5Encoder, TextEncoder
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
        captions: what each image shows: its prompt, or the name of its class.
    """

    images: Any
    report: Report
    seeds: tuple[int, ...] | None
    kept: list[tuple[Step, Tensor]]
    captions: list[str]


class Pipeline:
    """A model with what it needs to draw: tokenizer, text encoder, settings.

    Attributes:
        progress: whether a bar over the scales is shown, on a terminal only; a call may say otherwise.
    """

    def __init__(self, loaded: LoadedModel, text_encoder: TextEncoder | None) -> None:
        self.name = loaded.name
        self.model = loaded.model
        self.text_encoder = text_encoder
        self.defaults = loaded.defaults
        self.family = FAMILIES[loaded.family]
        self.conditioner = self.family.conditioner(self.model, self.text_encoder)
        self.progress = True

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "scenes",
        variant: str | None = None,
        *,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        text_encoder: TextEncoder | str | Path | None = "auto",
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """Loads a model.

        Args:
            name: an embedded model ("scenes"), a repository on the hub ("FoundationVision/Infinity",
                "FoundationVision/var"), a local folder, or a checkpoint file.
            variant: which of the released sizes, such as "2b" or "d30".
            revision: branch, tag or commit on the hub.
            tokenizer: the tokenizer's file, where it does not lie beside the transformer's.
            text_encoder: "auto" loads what the model was trained with (Flan-T5-XL for the released Infinity models);
                a name or folder of another T5, an encoder, or None to work with features only.
            device, dtype: where and in what precision; see :meth:`to`.

        Raises:
            UsageError: if there is no such model or variant.
            CheckpointError: if its files are missing, damaged or do not fit.
        """
        loaded = load_model(name, variant=variant, revision=revision, dtype=dtype, tokenizer=tokenizer)
        return cls(loaded, _text_encoder(loaded, text_encoder)).to(device, dtype)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Moves the model to a device or a precision, in place; the text encoder follows to the device."""
        self.model.to(device=device, dtype=dtype)
        if self.text_encoder is not None and device is not None:
            self.text_encoder.to(device=device)
        return self

    def enable_text_encoder_offload(self, device: str | torch.device | None = None) -> Pipeline:
        """Lets the text encoder's weights rest on the CPU and visit ``device`` (None: the model's) only to encode.

        Raises:
            UsageError: if the model's text encoder is too small for that to make sense.
        """
        encoder = self.text_encoder.encoder if isinstance(self.text_encoder, CachedEncoder) else self.text_encoder
        if not isinstance(encoder, T5Encoder):
            raise UsageError(f"text encoder offload: {self.name} has no large text encoder; leave it where it is")
        encoder.enable_offload(self.device if device is None else device)
        return self

    def enable_tiled_decode(self, tile: int | None = 32) -> Pipeline:
        """Decodes large pictures tile by tile, in bounded memory; ``tile`` is in latent cells, None turns it off."""
        self.model.enable_tiled_decode(tile)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        class_labels: str | int | Sequence[str | int] | None = None,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        negative_prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        method: Method | str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: PerScale | None = None,
        guidance_at: Sequence[int] = (0,),
        temperature: PerScale | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        more_smooth: bool | None = None,
        aspect_ratio: str | float = "1:1",
        resolution: str | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callable[[Step, Any], None] | None = None,
        progress: bool | None = None,
    ) -> Output:
        """Draws one picture per prompt or class (times ``num_images_per_prompt``).

        Args:
            prompt: a prompt or a list of them, for models that draw from text.
            negative_prompt: what guidance leads away from; None: the model's learned null text.
            class_labels: names or numbers of classes, for models that draw from classes.
            prompt_embeds, negative_prompt_embeds: features of the text encoder in place of texts: (L, C), (B, L, C),
                or a list of (L, C).
            method: an acceleration method, or its name; None: dense.
            seed: one seed, from which image i uses ``seed + i``, or a list with one per image; None: drawn at
                random and reported. The same seed on the same device gives the same picture, alone or in a batch.
            generator: a stream to draw from instead, in the order of the published implementations.
            guidance_scale: classifier-free guidance, one number (for VAR the end of its ramp) or one per scale;
                1 (for VAR 0) turns it off.
            guidance_at: where the branches are mixed: 0 on the logits, -m after block ``depth - m``.
            temperature: one number or one per scale; lower is more decided.
            top_k, top_p: truncation before sampling, ``top_k`` one number or one per scale; 1 takes the most likely.
            more_smooth: models with a codebook only: add soft blends of codes, which look smoother; None: as the
                model's authors do.
            aspect_ratio: width to height, "3:2" or a number; the nearest published schedule is taken.
            resolution: name of a schedule, such as "0.25M"; None: the model's own.
            output_type: see :class:`Output`.
            callback_on_scale_end: called with the step and the running state after each scale;
                :meth:`preview` shows the picture so far.
            progress: whether to show a bar; None: as :attr:`progress` says.

        Raises:
            UsageError: for an argument that cannot be used, before anything is computed.
        """
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt={num_images_per_prompt}: must be at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise UsageError(f"output_type={output_type!r}: must be one of pil, np, pt")
        subject = Subject(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, class_labels)
        request = self.conditioner.request(subject, num_images_per_prompt)
        samples = len(request.captions)
        method = _method(method)
        seeds, noise = _noise(seed, generator, samples)
        schedule = self.schedule(aspect_ratio, resolution)
        plan = self._plan(schedule, guidance_scale, guidance_at, temperature, top_k, top_p, more_smooth)
        prepared = method.prepare(plan, self.model.facts)  # an impossible combination fails here, before any work
        passes = len(prepared.passes)

        recorder = Recorder(self.device)
        with recorder.stage("condition"):
            condition = request.condition()
        shown = self.progress if progress is None else progress
        with scale_bar(shown, passes, callback_on_scale_end) as on_scale_end:
            state = generate(self.model, condition, samples, plan, method, noise, recorder, on_scale_end)
        with recorder.stage("decode"):
            pixels = self.model.decode(state)
        report = recorder.report(
            self.name,
            str(method),
            samples,
            self.dtype,
            seeds=seeds,
            schedule=plan.schedule.name,
            settings=method.settings(),
        )
        return Output(to_images(pixels, output_type), report, seeds, recorder.kept_maps(), request.captions)

    def preview(self, state: Any, output_type: OutputType = "pil") -> Any:
        """The picture so far of a running generation, for use in ``callback_on_scale_end``."""
        return to_images(self.model.decode(state), output_type)

    def schedule(self, aspect_ratio: str | float = "1:1", resolution: str | None = None) -> ScaleSchedule:
        """The scale schedule that a generation with these settings runs."""
        return self.model.schedule(1 / parse_aspect_ratio(aspect_ratio), resolution)

    def _plan(
        self,
        schedule: ScaleSchedule,
        guidance: PerScale | None,
        guidance_at: Sequence[int],
        temperature: PerScale | None,
        top_k: int | Sequence[int] | None,
        top_p: float | None,
        more_smooth: bool | None,
    ) -> Plan:
        defaults = self.defaults
        top_k = defaults.get("top_k", 0) if top_k is None else top_k
        top_p = defaults.get("top_p", 0.0) if top_p is None else top_p
        more_smooth = defaults.get("more_smooth", False) if more_smooth is None else more_smooth
        if not 0 <= top_p < 1:
            raise UsageError(f"top_p={top_p}: must be at least 0 (all) and below 1")
        guidance = defaults.get("guidance_scale", 3.0) if guidance is None else guidance
        temperature = defaults.get("temperature", 1.0) if temperature is None else temperature
        count = len(schedule)
        scales = _per_scale("guidance_scale", guidance, count, lowest=0.0)
        if isinstance(guidance, (int, float)):
            scales = self.conditioner.guidance(guidance, count)
        return Plan(
            schedule,
            guidance=scales,
            temperature=_per_scale("temperature", temperature, count, lowest=1e-6),
            guidance_at=self._places(guidance_at),
            top_k=_top_k(top_k, count),
            top_p=top_p,
            smooth=self.family.progress(count) if more_smooth else (),
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


def _text_encoder(loaded: LoadedModel, chosen: TextEncoder | str | Path | None) -> TextEncoder | None:
    """The encoder asked for, behind a cache of the last prompts."""
    if chosen == "auto":
        chosen = loaded.text_encoder or FAMILIES[loaded.family].text_encoder
    if isinstance(chosen, (str, Path)):
        chosen = T5Encoder(chosen)
    return None if chosen is None else CachedEncoder(chosen)


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


def _top_k(value: int | Sequence[int], scales: int) -> int | tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    for one in values:
        if not isinstance(one, int) or one < 0:
            raise UsageError(f"top_k={one!r}: must be a whole number, 0 (all) or more")
    if isinstance(value, int):
        return value
    if len(values) < scales:
        raise UsageError(f"top_k: {len(values)} values for {scales} scales; give one, or one per scale")
    return tuple(values[:scales])


def _per_scale(name: str, value: PerScale, scales: int, lowest: float) -> tuple[float, ...]:
    values = (float(value),) * scales if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(values) < scales:
        raise UsageError(f"{name}: {len(values)} values for {scales} scales; give one, or one per scale")
    for one in values:
        if not lowest <= one < float("inf"):
            raise UsageError(f"{name}={one}: must be a number of at least {lowest:g}")
    return values[:scales]
