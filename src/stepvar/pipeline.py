"""From prompts to images and videos."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from stepvar.checkpoints import EMBEDDED, LoadedModel, load_model, save_model
from stepvar.checkpoints.sources import Source, find_outline
from stepvar.core.arguments import (
    SEED,
    AspectRatio,
    GeneratorLike,
    PerScale,
    SamplingArguments,
    make_generators,
    make_noise,
    parse_aspect_ratio,
)
from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.report import Recorder
from stepvar.core.tokens import ScaleSchedule
from stepvar.core.values import (
    COUNT,
    MOST_VALUES,
    Range,
    as_list,
    device_of,
    dtype_of,
    number,
    placement,
    shown,
    text,
    whole_number,
)
from stepvar.core.words import CALL, LOAD, NO_WORDS, accepts, unknown_attribute
from stepvar.cost.dry_run import DryRun, dry_run, flop_counter
from stepvar.cost.memory import TEXT_TOKENS, check_fits, fits_easily, memory_of
from stepvar.cost.speedup import Fitted, Scope, fit_speedup
from stepvar.engine import Engine, EngineName
from stepvar.errors import UsageError
from stepvar.kernels.linear import Quantization, check_quantization
from stepvar.methods import Method, as_method
from stepvar.methods.contract import blaming
from stepvar.models.inputs import GenerationInputs, PreparedInputs
from stepvar.models.offload import OffloadName
from stepvar.models.precision import CacheName
from stepvar.models.registry import FAMILIES
from stepvar.models.shapes import check_ratio, shape_of_size, warn_if_larger
from stepvar.models.tiling import SMALLEST_TILE
from stepvar.output import Output, OutputType, to_media
from stepvar.records import describe
from stepvar.text import CachedEncoder, ContextFeatures, Encoder, OffloadableEncoder, WordEncoder, check_source
from stepvar.utils.ambient import stated_formats
from stepvar.utils.device import execution_device
from stepvar.utils.files import atomic_folder
from stepvar.utils.hub import hub_access
from stepvar.utils.log import logger
from stepvar.utils.progress import scale_bar


def _sampling_names() -> dict[str, None]:
    """Names of the arguments that say how to sample."""
    return dict.fromkeys(field.name for field in fields(SamplingArguments))


_PLACES = ("name", "tokenizer", "text_encoder")
"""Arguments of ``from_pretrained`` that may be local paths."""


class Pipeline:
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
            _check_text_encoder(find_outline(name, variant, revision, tokenizer), text_encoder)
            loaded = load_model(name, variant=variant, revision=revision, dtype=precision, tokenizer=tokenizer)
            loaded.model.set_cache_dtype(cache_dtype)
            pipe = cls(loaded, _text_encoder(loaded, text_encoder, quantization is not None), engine)
            if quantization is not None:  # before it moves: the device never holds the weights at full length
                pipe.model.quantize(quantization)
            pipe.to(place, precision)
        pipe._remember(name, variant, revision, tokenizer, text_encoder)
        logger.debug("loaded %s in %.1f s: %r", pipe.name, time.perf_counter() - started, pipe)
        return pipe

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
        ]
        return f"Pipeline({self.name!r}: {', '.join(filter(None, parts))})"

    @property
    def device(self) -> torch.device:
        return self.model.device

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
        encoder = _encoder_behind_cache(self.text_encoder)
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

    def enable_text_encoder_offload(self, device: str | torch.device | None = None) -> Pipeline:
        """Lets the text encoder's weights rest on the CPU and visit ``device`` (None: the model's) only to encode.

        Raises:
            UsageError: if the model's text encoder is too small for that to make sense.
        """
        encoder = _encoder_behind_cache(self.text_encoder)
        if not isinstance(encoder, OffloadableEncoder):
            raise UsageError(f"text encoder offload: {self.name} has no large text encoder; leave it where it is")
        encoder.enable_offload(self.device if device is None else device)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> Pipeline:
        """Lets all weights rest on the CPU: text encoder, transformer and decoder visit the device one after another.

        Load the pipeline on the CPU, then call this. Results are the same to the bit. Every generation copies the
        weights once. Previews, too, copy the decoder, and hold it beside the transformer.

        Args:
            device: where they work; None: where the model is, or from the CPU the first GPU.

        Raises:
            UsageError: if the model is on the CPU and there is no GPU.
        """
        return self._offload("model", device)

    def enable_sequential_cpu_offload(
        self, device: str | torch.device | None = None, blocks_on_device: int = 0
    ) -> Pipeline:
        """As :meth:`enable_model_cpu_offload`, and the blocks of the transformer visit the device one by one, too.

        While a block runs, the next one is copied. Every scale copies all blocks, which takes longer than small scales
        compute: the less memory, the slower.

        Args:
            device: as there.
            blocks_on_device: blocks that stay for the whole loop over scales; as many as fit.

        Raises:
            UsageError: as there, or if the model has not so many blocks.
        """
        return self._offload("sequential", device, blocks_on_device)

    def disable_cpu_offload(self) -> Pipeline:
        """Ends both kinds of offloading; the weights are left on the CPU, see :meth:`to`."""
        self.model.disable_offload()
        encoder = _encoder_behind_cache(self.text_encoder)
        if isinstance(encoder, OffloadableEncoder):
            encoder.disable_offload().to("cpu")
        return self

    def _offload(self, name: OffloadName, device: str | torch.device | None, blocks_on_device: int = 0) -> Pipeline:
        self.engine.clear()
        if device is None:
            place = execution_device(self.device)
        else:  # a model without data works on "meta"
            place = torch.device("meta") if str(device) == "meta" else device_of("device", device)
        with torch.inference_mode(False):
            self.model.enable_offload(name, place, whole_number("blocks_on_device", blocks_on_device))
        encoder = _encoder_behind_cache(self.text_encoder)
        if isinstance(encoder, OffloadableEncoder):
            encoder.enable_offload(place)
        elif encoder is not None:
            encoder.to(device=place)  # a few embeddings
        return self

    def enable_vae_tiling(self, tile: int = 32) -> Pipeline:
        """Decodes large images tile by tile, in bounded memory.

        Args:
            tile: side of a tile in latent cells.

        Raises:
            UsageError: if it is too small for tiles to overlap.
        """
        tile = whole_number("tile", tile)
        if tile < SMALLEST_TILE:
            raise UsageError(f"tile={tile}: must be at least {SMALLEST_TILE} latent cells")
        self.tile = tile
        return self

    def disable_vae_tiling(self) -> Pipeline:
        """Decodes images in one piece again."""
        self.tile = None
        return self

    def enable_vae_slicing(self) -> Pipeline:
        """Decodes the images of a batch one by one, in the memory of one."""
        self.sliced = True
        return self

    def disable_vae_slicing(self) -> Pipeline:
        """Decodes the images of a batch together again."""
        self.sliced = False
        return self

    @accepts(CALL)
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
                or a list of (L, C); for models that read padding, too, with mask and places.
            method: an acceleration method, or its name; None: dense.
            seed: one seed, from which image i uses ``seed + i``, or a list with one per image; None: chosen at
                random and reported. The same seed on the same device gives the same image, alone or in a batch.
            generator: a stream of random numbers instead, used in the order of the published implementations; or a
                list with one per image.
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
            speedup: how many times as fast as dense: decides the settings of ``method`` (None: "stepvar"), as
                :meth:`for_speedup` does, which measures a few of them on the first use.
            seconds: video models only: length of the video; 0: a still image; None: the model's usual length.
            num_frames: video models only: the length in frames instead.
            image: video models only: an image that the video begins with (PIL image, path, or array), or one each.
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
            seeds, noise = make_noise(seed, generator, samples, noise)
            schedule = inputs.schedule(self._schedule(aspect_ratio, resolution, inputs.seconds, inputs.aspect_ratio))
            settings = replace(self._settings(schedule, arguments), forced=inputs.forced_passes(schedule))
            shown = self.progress if progress is None else progress
            if speedup is None:
                method = as_method(method)
            else:
                method = fit_speedup(self, speedup, method or "stepvar", settings, samples, progress=shown).method
            with blaming(method):
                plan = method.plan(settings, self.model.info, samples)
            self._check_memory(plan, method)
            generators = make_generators(seeds, generator, samples)
            metadata = describe(self.name, self.origin, given, method, seeds, inputs.captions)
            return self._generate(
                inputs, plan, method, seeds, noise, generators, output_type, callback_on_scale_end, shown, metadata
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
            quantization=self.quantization,
            count=flop_counter(self.model, encoded.condition, plan, method, encoded.forced),
        )
        images, videos = to_media(pixels, self._fps, output_type, metadata)
        following = inputs.next_continuation(state.latent)
        return Output(
            images, report, seeds, recorder.kept_maps(), inputs.captions, videos, following, metadata, self._fps
        )

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
        with stated_formats():
            wanted = self.inputs.example(text_tokens, plan.schedule)
            condition = self.inputs.prepare(wanted, plan.samples).encode(plan.schedule, ()).condition
            return dry_run(self.model, condition, plan, method, tile=self.tile, sliced=self.sliced)

    @accepts(CALL, lambda: _sampling_names() | dict.fromkeys(("aspect_ratio", "resolution", "seconds")))
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

    @accepts(NO_WORDS)
    def schedule(
        self,
        aspect_ratio: AspectRatio | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
    ) -> ScaleSchedule:
        """The scale schedule that a generation with these arguments runs.

        Raises:
            UsageError: for an aspect ratio far from every published one, or another argument that cannot be used.
        """
        return self._schedule(aspect_ratio, resolution, seconds)

    def _schedule(
        self,
        aspect_ratio: AspectRatio | None,
        resolution: str | None,
        seconds: float | None,
        usual: float | None = None,
    ) -> ScaleSchedule:
        """As :meth:`schedule`.

        Args:
            usual: width over height where none was asked for, of an image that is cut to whatever is near; None: the
                model's own.
        """
        if resolution is not None:
            resolution = text("resolution", resolution)
        given = aspect_ratio
        if given is None:
            given = self.defaults.get("aspect_ratio", "1:1") if usual is None else usual
        seconds = self._seconds(seconds)
        if seconds is not None and not self.family.video:
            raise UsageError(f"seconds={seconds:g}: this model generates images; leave it out")
        wanted, extra = 1 / parse_aspect_ratio(given), (seconds,) if self.family.video else ()
        schedule: ScaleSchedule = self.model.schedule(wanted, resolution, *extra)
        if aspect_ratio is not None:
            check_ratio(self.model, schedule, aspect_ratio)
        if resolution is not None:
            warn_if_larger(schedule, self.model.schedule(wanted, None, *extra))
        return schedule

    def _seconds(self, seconds: float | None, num_frames: int | None = None) -> float | None:
        """The length of a video, by either of its arguments; None: the usual one."""
        if num_frames is None:
            return None if seconds is None else number("seconds", seconds, Range(0, 3600))
        if seconds is not None:
            raise UsageError("seconds and num_frames: give one of them")
        frames = whole_number("num_frames", num_frames, Range(1, 10**6))
        if not self.family.video:
            raise UsageError(f"num_frames={frames}: this model generates images; leave it out")
        return (frames - 1) / self._fps

    @accepts(NO_WORDS, _sampling_names)
    def settings(
        self,
        *,
        aspect_ratio: AspectRatio | None = None,
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
        return self._settings(self._schedule(aspect_ratio, resolution, seconds), SamplingArguments(**arguments))

    def _settings(self, schedule: ScaleSchedule, arguments: SamplingArguments) -> Settings:
        family, depth = self.family, self.model.config.depth
        return arguments.settings(schedule, self.defaults, depth, family.guidance_schedule, family.relative_scales)


def _check_outputs(output_type: Any, callback: Any) -> None:
    if output_type not in get_args(OutputType):
        raise UsageError(f"output_type={shown(output_type)}: must be one of {', '.join(get_args(OutputType))}")
    if callback is not None and not callable(callback):
        raise UsageError(f"callback_on_scale_end={shown(callback)}: must be a function of (step, state)")


def _check_text_encoder(outline: Source, chosen: Encoder[Any] | str | Path | None) -> None:
    """Finds out whether the encoder asked for can be had, before the model is fetched or read."""
    if isinstance(chosen, str) and chosen == "auto":
        chosen = None if outline.text_encoder is not None else outline.family.text_encoder
    elif isinstance(chosen, str):
        text("text_encoder", chosen)
    here = all(path.exists() for path in outline.parts.values())  # else loading the model says what is missing
    if isinstance(chosen, (str, Path)) and here:
        check_source(chosen)


def _encoder_behind_cache(encoder: Any) -> Any:
    return encoder.encoder if isinstance(encoder, CachedEncoder) else encoder


def _text_encoder(
    loaded: LoadedModel, chosen: Encoder[Any] | str | Path | None, quantized: bool
) -> Encoder[Any] | None:
    """The encoder asked for, behind a cache of the last prompts; one that is loaded here may be quantised."""
    if chosen == "auto":
        chosen = loaded.text_encoder or FAMILIES[loaded.family].text_encoder
    if isinstance(chosen, (str, Path)):
        chosen = FAMILIES[loaded.family].encoder(chosen, loaded.model.config)
        if quantized and isinstance(chosen, OffloadableEncoder):
            chosen.quantize()
    return None if chosen is None else CachedEncoder(chosen)
