"""From prompts to images and videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints import LoadedModel, load_model
from stepvar.core.arguments import PerScale, SamplingArguments, make_generators, make_noise, parse_aspect_ratio
from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.report import Recorder
from stepvar.core.tokens import ScaleSchedule
from stepvar.cost.dry_run import DryRun, dry_run, flop_counter
from stepvar.cost.memory import TEXT_TOKENS, check_fits, fits_easily, memory_of
from stepvar.cost.speedup import Fitted, Scope, fit_speedup
from stepvar.engine import Engine, EngineName
from stepvar.errors import UsageError
from stepvar.methods import Method, as_method
from stepvar.models.inputs import GenerationInputs
from stepvar.models.registry import FAMILIES
from stepvar.models.tiling import SMALLEST_TILE
from stepvar.output import Output, OutputType, to_media
from stepvar.text import CachedEncoder, ContextFeatures, Encoder, OffloadableEncoder
from stepvar.utils.progress import scale_bar


class Pipeline:
    """A model with what it needs to generate: tokenizer, text encoder, settings.

    Attributes:
        progress: whether a bar over the scales is shown, on a terminal only; a call may say otherwise.
        tile: side of the tiles of decoding in latent cells; None: images are decoded in one piece.
    """

    def __init__(self, loaded: LoadedModel, text_encoder: Encoder[Any] | None, engine: EngineName = "auto") -> None:
        self.name = loaded.name
        self.model = loaded.model
        self.text_encoder = text_encoder
        self.defaults = loaded.defaults
        self.family = FAMILIES[loaded.family]
        self.inputs = self.family.inputs(self.model, self.text_encoder)
        self.progress = True
        self.tile: int | None = None
        self.engine = Engine(engine)

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
        engine: EngineName = "auto",
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
            engine: "eager", "graphs" (CUDA graphs; experimental), or "auto"; see :class:`~stepvar.engine.Engine`.

        Raises:
            UsageError: if there is no such model or variant.
            CheckpointError: if its files are missing, damaged or do not fit.
        """
        loaded = load_model(name, variant=variant, revision=revision, dtype=dtype, tokenizer=tokenizer)
        return cls(loaded, _text_encoder(loaded, text_encoder), engine).to(device, dtype)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Moves the model to a device or a precision, in place; the text encoder follows to the device."""
        self.engine.clear()
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
        """Decodes large images tile by tile, in bounded memory.

        Args:
            tile: side of a tile in latent cells; None: in one piece again.

        Raises:
            UsageError: if it is too small for tiles to overlap.
        """
        if tile is not None and tile < SMALLEST_TILE:
            raise UsageError(f"tile={tile}: must be at least {SMALLEST_TILE} latent cells, or None for one piece")
        self.tile = tile
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
        guidance_schedule: str | None = None,
        guidance_type: str | None = None,
        cfg_layers: Sequence[int] = (0,),
        temperature: PerScale | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        more_smooth: bool | None = None,
        seconds: float | None = None,
        image: Any = None,
        video: Any = None,
        prompt_suffix: str | None = None,
        continuation: Any = None,
        aspect_ratio: str | float | None = None,
        resolution: str | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callable[[Step, Any], None] | None = None,
        progress: bool | None = None,
    ) -> Output:
        """Generates one image or video per prompt or class (times ``num_images_per_prompt``).

        Args:
            prompt: a prompt or a list of them, for text-to-image and text-to-video models.
            negative_prompt: what guidance leads away from; None: the model's learned null text.
            class_labels: names or numbers of classes, for class-conditional models.
            prompt_embeds, negative_prompt_embeds: features of the text encoder in place of texts: (L, C), (B, L, C),
                or a list of (L, C); for models that read padding, too, with mask and places.
            method: an acceleration method, or its name; None: dense.
            seed: one seed, from which image i uses ``seed + i``, or a list with one per image; None: chosen at
                random and reported. The same seed on the same device gives the same image, alone or in a batch.
            generator: a stream of random numbers instead, used in the order of the published implementations.
            noise: a source of random numbers to use instead.
            guidance_scale: classifier-free guidance, one number or one per scale; 1 turns it off. One number is spread
                over the scales by the guidance schedule.
            guidance_schedule: "constant", "linear" or "linear-hold" (see :mod:`stepvar.core.guidance`); None: that of
                the family.
            guidance_type: how the branches are combined: "cfg", or "apg" for adaptive projected guidance; None: as the
                model's authors do.
            cfg_layers: where the branches are combined: 0 on the logits, -m after block ``depth - m``.
            temperature: one number or one per scale; lower is more decided.
            top_k, top_p: truncation before sampling, ``top_k`` one number or one per scale; 1 takes the most likely.
            more_smooth: models with a codebook only: add soft blends of codes, which look smoother; None: as the
                model's authors do.
            seconds: video models only: length of the video; 0: a still image; None: the model's usual length.
            image: video models only: an image that the video begins with (PIL image, path, or array), or one each.
            video: video models only: a video to go on from (:class:`~stepvar.media.video.Video`, path, array, or
                images), or one each. It begins the result.
            prompt_suffix: video models only: goes behind every prompt, such as a description of a style.
            continuation: models that go on clip by clip only: what :meth:`start_continuation` returned, or the last
                :class:`Output` holds.
            aspect_ratio: width to height, "3:2" or a number; the nearest published schedule is taken. None: that of
                the given image or video, or the model's usual one.
            resolution: name of a schedule, such as "0.25M"; None: the model's own.
            output_type: see :class:`Output`.
            callback_on_scale_end: called with the step and the running state after each scale;
                :meth:`preview` shows the image so far.
            progress: whether to show a bar; None: as :attr:`progress` says.

        Raises:
            UsageError: for an argument that cannot be used, before anything is computed.
        """
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt={num_images_per_prompt}: must be at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise UsageError(f"output_type={output_type!r}: must be one of pil, np, pt")
        wanted = GenerationInputs(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            class_labels,
            seconds,
            image,
            video,
            prompt_suffix,
            continuation,
        )
        arguments = SamplingArguments(
            guidance_scale, guidance_schedule, guidance_type, cfg_layers, temperature, top_k, top_p, more_smooth
        )
        inputs = self.inputs.prepare(wanted, num_images_per_prompt)
        samples = len(inputs.captions)
        method = as_method(method)
        seeds, noise = make_noise(seed, generator, samples, noise)
        ratio = inputs.aspect_ratio if aspect_ratio is None else aspect_ratio
        schedule = inputs.schedule(self.schedule(ratio, resolution, inputs.seconds))
        settings = replace(self._settings(schedule, arguments), forced=inputs.forced_passes(schedule))
        plan = method.plan(settings, self.model.info, samples)
        self._check_memory(plan, method)

        recorder = Recorder(self.device)
        with recorder.stage("condition"):
            encoded = inputs.encode(schedule, make_generators(seeds, generator, samples))
        shown = self.progress if progress is None else progress
        with scale_bar(shown, plan.pass_weights, callback_on_scale_end) as on_scale_end:
            state = self.engine.generate(
                self.model, encoded.condition, plan, method, noise, encoded.forced, recorder, on_scale_end
            )
        with recorder.stage("decode"):
            pixels = self.model.decode(state, self.tile)
        report = recorder.report(
            self.name,
            str(method),
            samples,
            self.dtype,
            seeds=seeds,
            schedule=schedule.name,
            settings=method.settings(),
            count=flop_counter(self.model, encoded.condition, plan, method, encoded.forced),
        )
        images, videos = to_media(pixels, self._fps, output_type)
        following = inputs.next_continuation(state.latent)
        return Output(images, report, seeds, recorder.kept_maps(), inputs.captions, videos, following)

    def _check_memory(self, plan: Plan, method: Method) -> None:
        """Refuses what the device can never hold, with advice; what else is there is not counted."""
        available = memory_of(self.device)
        if available is not None and not fits_easily(self.model, plan, available):
            check_fits(self.dry_run(plan, method), available, f"device {self.device.type}")

    def dry_run(self, plan: Plan, method: Method, text_tokens: int = TEXT_TOKENS) -> DryRun:
        """The operations and the memory of a generation, without a text encoder; nothing is computed.

        Args:
            plan: as the method resolved it.
            text_tokens: of a prompt, where its length is free.
        """
        wanted = self.inputs.example(text_tokens, plan.schedule)
        condition = self.inputs.prepare(wanted, plan.samples).encode(plan.schedule, ()).condition
        return dry_run(self.model, condition, plan, method, tile=self.tile)

    def for_speedup(
        self,
        speedup: float,
        method: Method | str = "stepvar",
        *,
        samples: int = 1,
        scope: Scope = "image",
        progress: bool | None = None,
        **arguments: Any,
    ) -> Fitted:
        """Settings of a method that make a generation this many times as fast as a dense one.

        A few settings are measured on the first use (see :mod:`stepvar.cost.speedup`).

        Args:
            speedup: 1 or more.
            method: whose settings are to be found; those that the speed-up does not decide are kept.
            samples: images generated at once.
            scope: what the speed-up is of: a whole ``"image"``, from prompt to pixels, or the loop over ``"scales"``.
            progress: whether to show a bar; None: as :attr:`progress` says.
            arguments: of :meth:`settings`, for the dense generation.

        Raises:
            UsageError: for a method that saves nothing, or a speed-up that cannot be had; it names the largest.
        """
        shown, settings = self.progress if progress is None else progress, self.settings(**arguments)
        return fit_speedup(self, speedup, method, settings, samples, scope, progress=shown)

    @property
    def _fps(self) -> float:
        """Frames per second of generated videos; of no meaning for images."""
        return getattr(self.model.config, "fps", 1.0)

    def preview(self, state: Any, output_type: OutputType = "pil") -> Any:
        """The image or video so far of a running generation, for use in ``callback_on_scale_end``."""
        images, videos = to_media(self.model.decode(state, self.tile), self._fps, output_type)
        return images if len(images) else videos

    def start_continuation(
        self, video: Any, seed: int = 0, aspect_ratio: str | float | None = None, resolution: str | None = None
    ) -> Any:
        """What the first clip goes on from, for models that generate a video clip by clip.

        ``out = pipe("the boat turns", continuation=pipe.start_continuation("boat.mp4"))`` generates a clip, and
        ``pipe("rain sets in", continuation=out.continuation)`` the next one.

        Args:
            video: a :class:`~stepvar.media.video.Video`, path, array, or images; the model goes on from its end.
            seed: of what encoding samples.

        Raises:
            UsageError: if the model does not go on from videos, or the video is too short.
        """
        return self.inputs.start_continuation(
            video,
            lambda ratio: self.schedule(ratio if aspect_ratio is None else aspect_ratio, resolution),
            torch.Generator().manual_seed(seed),
        )

    def schedule(
        self,
        aspect_ratio: str | float | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
    ) -> ScaleSchedule:
        """The scale schedule that a generation with these arguments runs."""
        own = self.defaults.get("aspect_ratio", "1:1")
        ratio = 1 / parse_aspect_ratio(own if aspect_ratio is None else aspect_ratio)
        if self.family.video:
            return self.model.schedule(ratio, resolution, seconds)
        if seconds is not None:
            raise UsageError(f"seconds={seconds:g}: this model generates images; leave it out")
        return self.model.schedule(ratio, resolution)

    def settings(
        self,
        *,
        aspect_ratio: str | float | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
        **arguments: Any,
    ) -> Settings:
        """The settings of a dense generation, from words alone: what a method's ``plan`` starts from.

        Args:
            arguments: those of :class:`~stepvar.core.arguments.SamplingArguments`.

        Raises:
            UsageError: for an argument that cannot be used.
        """
        return self._settings(self.schedule(aspect_ratio, resolution, seconds), SamplingArguments(**arguments))

    def _settings(self, schedule: ScaleSchedule, arguments: SamplingArguments) -> Settings:
        family, depth = self.family, self.model.config.depth
        return arguments.settings(schedule, self.defaults, depth, family.guidance_schedule, family.relative_scales)


def _text_encoder(loaded: LoadedModel, chosen: Encoder[Any] | str | Path | None) -> Encoder[Any] | None:
    """The encoder asked for, behind a cache of the last prompts."""
    if chosen == "auto":
        chosen = loaded.text_encoder or FAMILIES[loaded.family].text_encoder
    if isinstance(chosen, (str, Path)):
        chosen = FAMILIES[loaded.family].encoder(chosen, loaded.model.config)
    return None if chosen is None else CachedEncoder(chosen)
