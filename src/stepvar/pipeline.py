"""From prompts to pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints import LoadedModel, load_model
from stepvar.core.arguments import (
    PerScale,
    by_clip,
    checked_top_k,
    make_generators,
    make_noise,
    parse_aspect_ratio,
    per_scale,
)
from stepvar.core.guidance import GUIDANCES
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.core.sampling import Noise
from stepvar.core.tokens import ScaleSchedule
from stepvar.cost.memory import TEXT_TOKENS, estimate_memory, memory_of
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Dense, Method, make_method
from stepvar.models.blocks import planned_works
from stepvar.models.inputs import VIDEO_ONLY, MovingRequest, Storyteller, Subject
from stepvar.models.registry import FAMILIES
from stepvar.output import Output, OutputType, to_images, to_videos
from stepvar.text import CachedEncoder, ContextFeatures, Encoder, OffloadableEncoder
from stepvar.utils.progress import scale_bar


class Pipeline:
    """A model with what it needs to draw: tokenizer, text encoder, settings.

    Attributes:
        progress: whether a bar over the scales is shown, on a terminal only; a call may say otherwise.
    """

    def __init__(self, loaded: LoadedModel, text_encoder: Encoder[Any] | None) -> None:
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
        text_encoder: Encoder[Any] | str | Path | None = "auto",
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
                the name or folder of another model of its kind, an encoder, or None to work with features only.
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
        if not isinstance(encoder, OffloadableEncoder):
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
        prompt_embeds: Tensor | Sequence[Tensor] | ContextFeatures | None = None,
        negative_prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        method: Method | str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        guidance_scale: PerScale | None = None,
        cfg_layers: Sequence[int] = (0,),
        guidance: str | None = None,
        temperature: PerScale | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        more_smooth: bool | None = None,
        seconds: float | None = None,
        image: Any = None,
        video: Any = None,
        prompt_suffix: str | None = None,
        story: Any = None,
        aspect_ratio: str | float | None = None,
        resolution: str | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callable[[Step, Any], None] | None = None,
        progress: bool | None = None,
    ) -> Output:
        """Draws one picture or video per prompt or class (times ``num_images_per_prompt``).

        Args:
            prompt: a prompt or a list of them, for models that draw from text.
            negative_prompt: what guidance leads away from; None: the model's learned null text.
            class_labels: names or numbers of classes, for models that draw from classes.
            prompt_embeds, negative_prompt_embeds: features of the text encoder in place of texts: (L, C), (B, L, C),
                or a list of (L, C); for models that read padding, too, with mask and places.
            method: an acceleration method, or its name; None: dense.
            seed: one seed, from which image i uses ``seed + i``, or a list with one per image; None: drawn at
                random and reported. The same seed on the same device gives the same picture, alone or in a batch.
            generator: a stream to draw from instead, in the order of the published implementations.
            noise: a source of draws to use instead.
            guidance_scale: classifier-free guidance, one number (for VAR the end of its ramp) or one per scale;
                1 (for VAR 0) turns it off.
            cfg_layers: where the branches are mixed: 0 on the logits, -m after block ``depth - m``.
            guidance: how logits are mixed: "plain" or "projected" (:class:`~stepvar.core.guidance.ProjectedGuidance`);
                None: as the model's authors do.
            temperature: one number or one per scale; lower is more decided.
            top_k, top_p: truncation before sampling, ``top_k`` one number or one per scale; 1 takes the most likely.
            more_smooth: models with a codebook only: add soft blends of codes, which look smoother; None: as the
                model's authors do.
            seconds: video models only: length of the video; 0: a still image; None: the model's usual length.
            image: video models only: a picture that the video begins with (PIL image, path, or array), or one each.
            video: video models only: a video that is to go on from its end (:class:`~stepvar.media.video.Video`, path,
                array, or pictures), or one each. It begins the result.
            prompt_suffix: video models only: goes behind every prompt, such as a description of a style.
            story: models that go on from a video only: what :meth:`begin_story` or the last :class:`Output` gave.
            aspect_ratio: width to height, "3:2" or a number; the nearest published schedule is taken. None: that of
                the given picture or video, or the model's usual one.
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
        subject = Subject(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            class_labels,
            seconds=seconds,
            image=image,
            video=video,
            prompt_suffix=prompt_suffix,
            story=story,
        )
        if not self.family.draws_video:
            subject.refuse(VIDEO_ONLY, "it to a model that draws videos")
        request = self.conditioner.request(subject, num_images_per_prompt)
        samples = len(request.captions)
        method = _method(method)
        seeds, noise = make_noise(seed, generator, samples, noise)
        moving = request if isinstance(request, MovingRequest) else None
        if moving is not None:
            aspect_ratio, seconds = aspect_ratio or moving.aspect_ratio, moving.seconds
        schedule = self.schedule(aspect_ratio, resolution, seconds)
        if moving is not None:
            schedule = moving.schedule(schedule)
        plan = self._plan(schedule, guidance_scale, cfg_layers, guidance, temperature, top_k, top_p, more_smooth)
        method.prepare(plan, self.model.info)  # an impossible combination fails here, before any work
        self._check_memory(plan, method, samples)

        recorder = Recorder(self.device)
        with recorder.stage("condition"):
            condition = request.condition()
            if moving is not None:
                condition = moving.remembering(condition, schedule)
                plan = replace(plan, given=moving.given(schedule, make_generators(seeds, generator, samples)))
        shown = self.progress if progress is None else progress
        passes = len(method.edit(plan).passes)

        def work() -> dict[int, float]:
            prepared = method.prepare(plan, self.model.info)
            found = planned_works(self.model, prepared, method, samples, TEXT_TOKENS)
            return {step.index: float(work.flops) for step, work in found}

        with scale_bar(shown, passes, callback_on_scale_end, work) as on_scale_end:
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
        images, videos = self._results(pixels, output_type)
        following = None if moving is None else moving.next_story(state.latent)
        return Output(images, report, seeds, recorder.kept_maps(), request.captions, videos, following)

    def _check_memory(self, plan: Plan, method: Method, samples: int) -> None:
        """Refuses what the device can never hold, with advice; what else lives there is not counted."""
        available = memory_of(self.device)
        if available is not None:
            model = self.model
            estimate = estimate_memory(model.config, plan, method, samples, model.precision, model.tile)
            estimate.check(available, f"device {self.device.type}")

    def _results(self, pixels: Tensor, output_type: OutputType) -> tuple[Any, Any]:
        """Images and videos from pixels (B, 3, H, W), or (B, 3, F, H, W): one of the two is empty."""
        if pixels.ndim == 4:
            return to_images(pixels, output_type), []
        if pixels.shape[2] == 1:
            return to_images(pixels[:, :, 0], output_type), []
        return [], to_videos(pixels, self.model.config.fps, output_type)

    def preview(self, state: Any, output_type: OutputType = "pil") -> Any:
        """The picture or video so far of a running generation, for use in ``callback_on_scale_end``."""
        images, videos = self._results(self.model.decode(state), output_type)
        return images if len(images) else videos

    def begin_story(
        self, video: Any, seed: int = 0, aspect_ratio: str | float | None = None, resolution: str | None = None
    ) -> Any:
        """What the first clip of a story goes on from, for models that tell stories clip by clip.

        ``out = pipe("the boat turns", story=pipe.begin_story("boat.mp4"))`` draws a clip, and
        ``pipe("rain sets in", story=out.story)`` the next one.

        Args:
            video: a :class:`~stepvar.media.video.Video`, path, array, or pictures; its end is remembered.
            seed: of what encoding draws.

        Raises:
            UsageError: if the model tells no stories, or the video is too short.
        """
        if not isinstance(self.conditioner, Storyteller):
            raise UsageError("story: this model draws pictures; take a model that draws videos")
        return self.conditioner.begin_story(
            video,
            lambda ratio: self.schedule(aspect_ratio or ratio, resolution),
            torch.Generator().manual_seed(seed),
        )

    def schedule(
        self,
        aspect_ratio: str | float | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
    ) -> ScaleSchedule:
        """The scale schedule that a generation with these settings runs."""
        ratio = 1 / parse_aspect_ratio(aspect_ratio or self.defaults.get("aspect_ratio", "1:1"))
        if self.family.draws_video:
            return self.model.schedule(ratio, resolution, seconds)
        if seconds is not None:
            raise UsageError(f"seconds={seconds:g}: this model draws pictures; leave it out")
        return self.model.schedule(ratio, resolution)

    def plan(
        self,
        *,
        guidance_scale: PerScale | None = None,
        cfg_layers: Sequence[int] = (0,),
        guidance: str | None = None,
        temperature: PerScale | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        more_smooth: bool | None = None,
        aspect_ratio: str | float | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
    ) -> Plan:
        """What a dense generation with these settings is going to do, from words alone; arguments as for a call.

        Raises:
            UsageError: for an argument that cannot be used.
        """
        schedule = self.schedule(aspect_ratio, resolution, seconds)
        return self._plan(schedule, guidance_scale, cfg_layers, guidance, temperature, top_k, top_p, more_smooth)

    def _plan(
        self,
        schedule: ScaleSchedule,
        guidance_scale: PerScale | None,
        cfg_layers: Sequence[int],
        guidance: str | None,
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
        guidance = defaults.get("guidance", "plain") if guidance is None else guidance
        if guidance not in GUIDANCES:
            raise UsageError(f"guidance={guidance!r}: must be one of {', '.join(GUIDANCES)}")
        if guidance_scale is None:
            guidance_scale = defaults.get("guidance_scale", 3.0)
        if temperature is None:
            temperature = by_clip(defaults.get("temperature", 1.0), schedule)
        count = len(schedule)
        scales = per_scale("guidance_scale", guidance_scale, count, lowest=0.0)
        if isinstance(guidance_scale, (int, float)):
            scales = self.conditioner.guidance(guidance_scale, count)
        return Plan(
            schedule,
            guidance=scales,
            temperature=per_scale("temperature", temperature, count, lowest=1e-6),
            cfg_layers=self._places(cfg_layers),
            top_k=checked_top_k(top_k, count),
            top_p=top_p,
            smooth=self.family.progress(count) if more_smooth else (),
            mix=GUIDANCES[guidance],
        )

    def _places(self, cfg_layers: Sequence[int]) -> tuple[int, ...]:
        depth = self.model.config.depth
        for place in cfg_layers:
            if not -depth < place <= 0:
                raise UsageError(f"cfg_layers={place}: must be 0 (logits) or between -1 and -{depth - 1}")
        return tuple(cfg_layers)


def _text_encoder(loaded: LoadedModel, chosen: Encoder[Any] | str | Path | None) -> Encoder[Any] | None:
    """The encoder asked for, behind a cache of the last prompts."""
    if chosen == "auto":
        chosen = loaded.text_encoder or FAMILIES[loaded.family].text_encoder
    if isinstance(chosen, (str, Path)):
        chosen = FAMILIES[loaded.family].encoder(chosen, loaded.model.config)
    return None if chosen is None else CachedEncoder(chosen)


def _method(method: Method | str | None) -> Method:
    if method is None:
        return Dense()
    if isinstance(method, str):
        return make_method(method)
    if not isinstance(method, Method):
        raise UsageError(f"method={method!r}: give a method such as StepVAR(), or its name")
    return method
