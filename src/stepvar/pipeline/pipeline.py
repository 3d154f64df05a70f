"""From prompts to images and videos."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from stepvar.checkpoints import EMBEDDED, LoadedModel, load_model, save_model
from stepvar.checkpoints.sources import find_outline
from stepvar.core.arguments import (
    SEED,
    AspectRatio,
    GeneratorLike,
    PerScale,
    SamplingArguments,
    make_generators,
    make_noise,
)
from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.core.values import (
    COUNT,
    MOST_VALUES,
    as_list,
    device_of,
    dtype_of,
    placement,
    shown,
    text,
    whole_number,
)
from stepvar.core.words import CALL, LOAD, NO_WORDS, accepts, unknown_attribute
from stepvar.cost.dry_run import flop_counter
from stepvar.cost.speedup import Fitted, Scope, fit_speedup
from stepvar.engine import Engine, EngineName
from stepvar.errors import UsageError
from stepvar.kernels.linear import Quantization, check_quantization
from stepvar.methods import Method, as_method
from stepvar.methods.contract import blaming
from stepvar.models.inputs import GenerationInputs, PreparedInputs
from stepvar.models.precision import CacheName
from stepvar.models.registry import FAMILIES
from stepvar.models.shapes import shape_of_size
from stepvar.output import Output, OutputType, to_media
from stepvar.pipeline.loading import check_text_encoder, encoder_behind_cache, own_text_encoder
from stepvar.pipeline.memory import MemoryOptions
from stepvar.pipeline.records import describe
from stepvar.pipeline.schedules import Schedules, sampling_names
from stepvar.text import ContextFeatures, Encoder, PooledFeatures, WordEncoder
from stepvar.utils.ambient import stated_formats
from stepvar.utils.files import atomic_folder
from stepvar.utils.hub import hub_access
from stepvar.utils.log import logger
from stepvar.utils.progress import scale_bar

_PLACES = ("name", "tokenizer", "text_encoder")
"""Arguments of ``from_pretrained`` that may be local paths."""


class Pipeline(MemoryOptions, Schedules):
    """A model with what it needs to generate: tokenizer, text encoder, settings.

    Attributes:
        progress: whether a bar over the scales is shown, on a terminal only; a call may say otherwise.
        tile: side of the tiles of decoding in latent cells; None: images are decoded in one piece.
        sliced: whether the images of a batch are decoded one by one.
    """

    def __init__(self, loaded: LoadedModel, text_encoder: Encoder[Any] | None, engine: EngineName = "auto") -> None:
        self.name = loaded.name
        self.model = loaded.model
        self.text_encoder = text_encoder
        self._text_config = loaded.text_config
        self.defaults = loaded.defaults
        self.family = FAMILIES[loaded.family]
        self.inputs = self.family.inputs(self.model, self.text_encoder)
        self.progress = True
        self.tile: int | None = None
        self._origin: dict[str, str | None] | None = None
        self.sliced = False
        self.engine = Engine(engine)
        self._fitting: set[Hashable] = set()

    @classmethod
    @accepts(LOAD)
    def from_pretrained(
        cls,
        name: str | Path = "scenes",
        variant: str | None = None,
        *,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        text_encoder: Encoder[Any] | str | Path | None = "auto",
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | str = torch.float32,
        engine: EngineName = "auto",
        cache_dtype: CacheName | None = None,
        quantization: Quantization | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Pipeline:
        """Loads a model.

        Words of diffusers are taken, too: see the page "Coming from diffusers".

        Args:
            name: an embedded model ("scenes"), a repository on the hub ("FoundationVision/Infinity",
                "FoundationVision/var"), a local folder, or a checkpoint file.
            variant: which of the released sizes, such as "2b" or "d30".
            revision: branch, tag or commit on the hub.
            tokenizer: the tokenizer's file, where it does not lie beside the transformer's.
            text_encoder: "auto" loads what the model was trained with (Flan-T5-XL for the released Infinity models);
                the name or folder of another model of its kind, an encoder, or None to work with features only.
            device, dtype: where and in what precision, also by name ("auto", "cuda:1"; "bf16"); see :meth:`to`.
            engine: "eager", "graphs" (CUDA graphs), or "auto": graphs on CUDA; see :class:`~stepvar.engine.Engine`.
            cache_dtype: "int8" stores keys and values in half of the memory of bfloat16, with a scale per head and
                token; None: as they are computed.
            quantization: how the weights of the blocks are stored: "int8" on any device, or "fp8" on Hopper and newer
                GPUs, which also multiply in fp8. A large text encoder that is loaded here is stored in int8 either way.
            cache_dir, token, local_files_only: of downloads; None: as ``HF_HOME`` and ``HF_TOKEN`` say.

        Raises:
            UsageError: if there is no such model, variant or device, or the device cannot run the quantization, before
                anything is fetched.
            CheckpointError: if its files are missing, damaged or do not fit.
        """
        for word, value in (("name", name), ("variant", variant), ("revision", revision), ("tokenizer", tokenizer)):
            if value is not None and not isinstance(value, Path):
                text(word, value)
        place, precision = device_of("device", "cpu" if device is None else device), dtype_of("dtype", dtype)
        Engine(engine)
        if quantization is not None:
            check_quantization(quantization, place)
        started = time.perf_counter()
        # Weights made in inference mode could never be changed again.
        with hub_access(cache_dir, token, local_files_only), torch.inference_mode(False), stated_formats():
            check_text_encoder(find_outline(name, variant, revision, tokenizer), text_encoder)
            loaded = load_model(name, variant=variant, revision=revision, dtype=precision, tokenizer=tokenizer)
            loaded.model.set_cache_dtype(cache_dtype)
            pipe = cls(loaded, own_text_encoder(loaded, text_encoder, quantization is not None), engine)
            if quantization is not None:  # before it moves: the device never holds the weights at full length
                pipe.model.quantize(quantization)
            pipe.to(place, precision)
        pipe._remember(name, variant, revision, tokenizer, text_encoder)
        logger.debug("loaded %s in %.1f s: %r", pipe.name, time.perf_counter() - started, pipe)
        return pipe

    from_single_file = from_pretrained

    def _remember(self, name: Any, variant: Any, revision: Any, tokenizer: Any, text_encoder: Any) -> None:
        """Keeps what was asked for as texts; local files by their whole path."""
        if text_encoder is not None and not isinstance(text_encoder, (str, Path)):
            return  # an object, which no text stands for
        given = {"name": name, "variant": variant, "revision": revision, "tokenizer": tokenizer}
        self._origin = {
            key: None if one is None else os.path.abspath(one) if key in _PLACES and os.path.exists(one) else str(one)
            for key, one in (given | {"text_encoder": text_encoder}).items()
        }
        if str(name) in EMBEDDED:
            self._origin["name"] = str(name)

    @property
    def origin(self) -> dict[str, Any] | None:
        """What makes this pipeline again, for records in files: arguments of :meth:`from_pretrained`, how it decodes.

        None where it was made of parts.
        """
        if self._origin is None:
            return None
        now = {"engine": self.engine.name, "device": str(self.device), "tile": self.tile, "sliced": self.sliced}
        now |= {"cache_dtype": self.model.precision.cache, "quantization": self.quantization}
        return self._origin | now | {"dtype": str(self.dtype).removeprefix("torch.")}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise unknown_attribute(self, name)

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.model.parameters())
        encoder = getattr(self.text_encoder, "encoder", self.text_encoder)
        parts = [
            f"{self.family.name}, {weights / 1e6:,.1f} M parameters",
            f"{self.device} {str(self.dtype).removeprefix('torch.')}",
            f"quantised to {self.quantization}" if self.quantization is not None else "",
            f"text encoder {getattr(encoder, 'name', type(encoder).__name__)}" if encoder is not None else "",
            f"engine {self.engine.name}",
            f"tiles of {self.tile}" if self.tile is not None else "",
            "decoding one image at a time" if self.sliced else "",
        ]
        return f"Pipeline({self.name!r}: {', '.join(filter(None, parts))})"

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def quantization(self) -> Quantization | None:
        """How the weights of the blocks are stored; None: in :attr:`dtype`."""
        kind: Quantization | None = self.model.precision.quantization
        return kind

    def to(self, *args: Any, **kwargs: Any) -> Pipeline:
        """Moves the model to a device or a precision, in place; the text encoder follows to the device.

        Args:
            args, kwargs: ``device`` ("cuda", "cuda:1", "auto", ...) and ``dtype`` (``torch.bfloat16``, "bf16", ...),
                in any order, or a tensor that has both.

        Raises:
            UsageError: for a device that is not there, a format that models cannot run in, or if it is offloaded.
        """
        place, dtype, others = placement(args, kwargs)
        device = None if place is None else device_of("device", place)
        self.engine.clear()
        with torch.inference_mode(False), stated_formats():
            if dtype is not None:
                self.model.to(dtype=dtype)
            if device is not None:
                self.model.to(device=device, **others)
                if self.text_encoder is not None:
                    self.text_encoder.to(device=device)
        return self

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None) -> Path:
        """Writes the model as a folder that :meth:`from_pretrained` reads: safetensors and a configuration.

        Args:
            folder: it must not exist.
            dtype: of the weights; None: as each is held.

        Returns:
            The folder.

        Raises:
            OutputError: if it exists, or cannot be written.
        """
        encoder = encoder_behind_cache(self.text_encoder)
        own, folder = encoder if isinstance(encoder, WordEncoder) else None, Path(folder)
        precision = None if dtype is None else dtype_of("dtype", dtype)
        with atomic_folder(folder) as made:
            config = None if own is None else self._text_config
            save_model(made, self.name, self.model, own, config, self.defaults, precision)
        return folder

    def set_progress_bar_config(self, *, disable: bool = False, **look: Any) -> None:
        """Switches the progress bar on or off, as diffusers' pipelines do; how it looks cannot be set."""
        if look:
            raise UsageError(f"{', '.join(look)}: the look of the bar cannot be set; give disable=True or False")
        self.progress = not disable

    @accepts(CALL)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        class_labels: str | int | Sequence[str | int] | None = None,
        prompt_embeds: Tensor | Sequence[Tensor] | ContextFeatures | PooledFeatures | None = None,
        negative_prompt_embeds: Tensor | Sequence[Tensor] | PooledFeatures | None = None,
        method: Method | str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: GeneratorLike | None = None,
        noise: Noise | None = None,
        guidance_scale: PerScale | None = None,
        guidance_schedule: str | None = None,
        guidance_type: str | None = None,
        cfg_layers: int | Sequence[int] = (0,),
        temperature: PerScale | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        more_smooth: bool | None = None,
        speedup: float | None = None,
        seconds: float | None = None,
        num_frames: int | None = None,
        image: Any = None,
        video: Any = None,
        prompt_suffix: str | None = None,
        continuation: Any = None,
        aspect_ratio: AspectRatio | None = None,
        resolution: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callable[[Step, Any], None] | None = None,
        progress: bool | None = None,
    ) -> Output:
        """Generates one image or video per prompt or class (times ``num_images_per_prompt``).

        Numbers may be those of numpy or tensors of one value. Words of diffusers are taken, too: see the page "Coming
        from diffusers".

        Args:
            prompt: a prompt or a list of them, for text-to-image and text-to-video models.
            negative_prompt: what guidance leads away from; None: the model's learned null text.
            class_labels: names or numbers of classes, for class-conditional models.
            prompt_embeds, negative_prompt_embeds: features of the text encoder in place of texts: (L, C), (B, L, C),
                or a list of (L, C); for models that read padding, too, with mask and places
                (:class:`~stepvar.text.ContextFeatures`), for models that read a pooled vector, with it
                (:class:`~stepvar.text.PooledFeatures`).
            method: an acceleration method, or its name; None: dense; "auto", with ``speedup``: the best for the model.
            seed: one seed, from which image i uses ``seed + i``, or a list with one per image; None: chosen at
                random and reported. The same seed on the same device gives the same image, alone or in a batch.
            generator: a stream of random numbers instead, used in the order of the published implementations; or a
                list with one per image.
            noise: a source of random numbers to use instead.
            guidance_scale: classifier-free guidance, one number or one per scale; 1 turns it off. One number is spread
                over the scales by the guidance schedule.
            guidance_schedule: "constant", "linear", "linear-hold", "linear-window" or "linear-late-window" (see
                :mod:`stepvar.core.guidance`); None: that of the model.
            guidance_type: how the branches are combined: "cfg", or "apg" for adaptive projected guidance; None: as the
                model's authors do.
            cfg_layers: where the branches are combined: 0 on the logits, -m after block ``depth - m``.
            temperature: one number or one per scale; lower is more decided.
            top_k, top_p: truncation before sampling, ``top_k`` one number or one per scale; 1 takes the most likely.
            more_smooth: models with a codebook only: add soft blends of codes, which look smoother; None: as the
                model's authors do.
            speedup: how many times as fast as dense: decides the settings of ``method`` (None: "stepvar"), as
                :meth:`for_speedup` does, which measures a few of them on the first use.
            seconds: video models only: length of the video; 0: a still image; None: the model's usual length.
            num_frames: video models only: the length in frames instead.
            image: an image (PIL image, path, or array), or one each: for video models, what the video begins with; for
                models that edit, what the prompt changes, and the result has its size.
            video: video models only: a video to go on from (:class:`~stepvar.media.video.Video`, path, array, or
                images), or one each. It begins the result.
            prompt_suffix: video models only: goes behind every prompt, such as a description of a style.
            continuation: models that go on clip by clip only: what :meth:`start_continuation` returned, or the last
                :class:`Output` holds.
            aspect_ratio: width to height, "3:2", (3, 2) or a number; the nearest published schedule is taken, and
                none if that is far away. None: that of the given image or video, or the model's usual one.
            resolution: name of a schedule, such as "0.25M"; None: the model's own.
            height, width: the size in pixels instead; must be that of a schedule.
            output_type: see :class:`Output`.
            callback_on_scale_end: called with the step and the running state after each scale;
                :meth:`preview` shows the image so far.
            progress: whether to show a bar; None: as :attr:`progress` says.

        Raises:
            UsageError: for an argument that cannot be used, before anything is computed.
        """
        given = dict(locals())
        with stated_formats():
            times = whole_number("num_images_per_prompt", num_images_per_prompt, COUNT)
            if times * len(as_list(prompt) or as_list(class_labels) or [1]) > MOST_VALUES:
                raise UsageError(f"num_images_per_prompt={times}: at most {MOST_VALUES} images at once; call it again")
            _check_outputs(output_type, callback_on_scale_end)
            wanted = GenerationInputs(
                prompt,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                class_labels,
                self._seconds(seconds, num_frames),
                image,
                video,
                prompt_suffix,
                continuation,
            )
            arguments = SamplingArguments(
                guidance_scale, guidance_schedule, guidance_type, cfg_layers, temperature, top_k, top_p, more_smooth
            )
            if height is not None or width is not None:
                if aspect_ratio is not None or resolution is not None:
                    raise UsageError("height and width: they say the shape; leave aspect_ratio and resolution out")
                aspect_ratio, resolution = shape_of_size(self.model, height, width)
            inputs = self.inputs.prepare(wanted, times)
            samples = len(inputs.captions)
            sizes = {one.size for one in inputs.sources}
            if output_type != "pil" and len(sizes) > 1:
                found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
                raise UsageError(f"output_type={output_type!r}: the images have different sizes ({found}); use 'pil'")
            seeds, noise = make_noise(seed, generator, samples, noise)
            schedule = inputs.schedule(self._schedule(aspect_ratio, resolution, inputs.seconds, inputs.aspect_ratio))
            settings = replace(self._settings(schedule, arguments), forced=inputs.forced_passes(schedule))
            shown, reason = self.progress if progress is None else progress, ""
            if speedup is None:
                method = as_method(method)
            else:
                fitted = fit_speedup(self, speedup, method or "stepvar", settings, samples, progress=shown)
                method, reason = fitted.method, fitted.reason
            with blaming(method):
                plan = method.plan(settings, self.model.info, samples)
            self._check_memory(plan, method)
            generators = make_generators(seeds, generator, samples)
            metadata = describe(self.name, self.origin, given, method, seeds, inputs.captions)
            return self._generate(
                inputs,
                plan,
                method,
                seeds,
                noise,
                generators,
                output_type,
                callback_on_scale_end,
                shown,
                metadata,
                reason,
            )

    def _generate(
        self,
        inputs: PreparedInputs,
        plan: Plan,
        method: Method,
        seeds: tuple[int, ...] | None,
        noise: Noise,
        generators: list[torch.Generator],
        output_type: OutputType,
        callback: Callable[[Step, Any], None] | None,
        shown: bool,
        metadata: list[dict[str, str]],
        reason: str,
    ) -> Output:
        """Runs what was prepared, and measures it."""
        recorder = Recorder(self.device)
        with recorder.stage("condition"):
            encoded = inputs.encode(plan.schedule, generators)
        with scale_bar(shown, plan.pass_weights, callback) as on_scale_end:
            state = self.engine.generate(
                self.model, encoded.condition, plan, method, noise, encoded.forced, recorder, on_scale_end
            )
        with recorder.stage("decode"):
            pixels = self.model.decode(state, self.tile, self.sliced)
        recorder.check_finite(str(method))
        report = recorder.report(
            self.name,
            str(method),
            plan.samples,
            self.dtype,
            seeds=seeds,
            schedule=plan.schedule.name,
            settings=method.settings(),
            chosen=reason,
            quantization=self.quantization,
            count=flop_counter(self.model, encoded.condition, recorder.plan or plan, method, encoded.forced),
        )
        sources = inputs.sources
        images, videos = to_media(pixels, self._fps, output_type, metadata, sources)
        following, kept = inputs.next_continuation(state.latent), recorder.kept_maps()
        return Output(images, report, seeds, kept, inputs.captions, videos, following, metadata, self._fps, sources)

    @accepts(CALL, lambda: sampling_names() | dict.fromkeys(("aspect_ratio", "resolution", "seconds")))
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
            method: whose settings are to be found; those that the speed-up does not decide are kept. "auto": the best
                one for this model, by the comparison that was made of it; the result says which, and why.
            samples: images generated at once.
            scope: what the speed-up is of: a whole ``"image"``, from prompt to pixels, or the loop over ``"scales"``.
            progress: whether to show a bar; None: as :attr:`progress` says.
            arguments: of :meth:`settings`, for the dense generation.

        Raises:
            UsageError: for a method that saves nothing, or a speed-up that cannot be had; it names the largest.
        """
        shown, settings = self.progress if progress is None else progress, self.settings(**arguments)
        return fit_speedup(self, speedup, method, settings, samples, scope, progress=shown)

    def preview(self, state: Any, output_type: OutputType = "pil") -> Any:
        """The image or video so far of a running generation, for use in ``callback_on_scale_end``.

        Of an edit it is the whole square.
        """
        with stated_formats():
            images, videos = to_media(self.model.decode(state, self.tile, self.sliced), self._fps, output_type)
        return images if len(images) else videos

    @accepts(NO_WORDS)
    def start_continuation(
        self, video: Any, seed: int = 0, aspect_ratio: AspectRatio | None = None, resolution: str | None = None
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
        generator = torch.Generator("cpu").manual_seed(whole_number("seed", seed, SEED))
        with stated_formats():
            return self.inputs.start_continuation(
                video, lambda ratio: self._schedule(aspect_ratio, resolution, None, ratio), generator
            )


def _check_outputs(output_type: Any, callback: Any) -> None:
    if output_type not in get_args(OutputType):
        raise UsageError(f"output_type={shown(output_type)}: must be one of {', '.join(get_args(OutputType))}")
    if callback is not None and not (callable(callback) and _takes_two(callback)):
        raise UsageError(f"callback_on_scale_end={shown(callback)}: must be a function of (step, state)")


def _takes_two(callback: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments, as far as Python can tell."""
    try:
        parameters = signature(callback)
    except (TypeError, ValueError):  # some that are written in C do not say
        return True
    try:
        parameters.bind(None, None)
    except TypeError:
        return False
    return True
