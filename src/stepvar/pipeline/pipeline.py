"""From prompts to images and videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from stepvar.core.arguments import (
    SEED,
    AspectRatio,
    GeneratorLike,
    PerScale,
    SamplingArguments,
    make_generators,
    make_noise,
)
from stepvar.core.noise import Noise, SeededNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.report import Recorder, Report
from stepvar.core.split import split_plan, whole_plan
from stepvar.core.values import COUNT, MOST_VALUES, as_list, shown, whole_number
from stepvar.core.words import CALL, NO_WORDS, accepts
from stepvar.cost.dry_run import flop_counter
from stepvar.cost.speedup import Fitted, Scope, fit_speedup
from stepvar.errors import UsageError
from stepvar.methods import Method, as_method
from stepvar.methods.contract import blaming
from stepvar.models.inputs import EncodedInputs, GenerationInputs, PreparedInputs
from stepvar.models.shapes import shape_of_size
from stepvar.output import Latents, MediaType, Output, OutputType, check_outputs, check_stackable, to_media
from stepvar.pipeline.memory import MemoryOptions
from stepvar.pipeline.pretrained import Pretrained
from stepvar.pipeline.records import describe
from stepvar.pipeline.schedules import Schedules, sampling_names
from stepvar.text import ContextFeatures, PooledFeatures
from stepvar.utils.ambient import stated_formats
from stepvar.utils.progress import scale_bar

PLANS = 32
"""Plans that are kept."""


@dataclass(frozen=True)
class Prepared:
    """A call whose arguments were checked and resolved: what it runs.

    Attributes:
        noise: where the random numbers of the loop come from.
        generators: one per image or video, for what encoding samples.
        metadata: the texts for the files, one set per image or video.
        reason: why a speed-up chose the method; else empty.
    """

    inputs: PreparedInputs
    plan: Plan
    method: Method
    seeds: tuple[int, ...] | None
    noise: Noise
    generators: list[torch.Generator]
    metadata: list[dict[str, str]]
    reason: str


class Pipeline(Pretrained, MemoryOptions, Schedules):
    """A model with what it needs to generate: tokenizer, text encoder, settings.

    Attributes:
        progress: whether a bar over the scales is shown, on a terminal only; a call may say otherwise.
        tile: side of the tiles of decoding in latent cells; None: images are decoded in one piece.
        sliced: whether the images of a batch are decoded one by one.
        processes: the two that run one guidance branch each; None: this one runs both.
    """

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
            output_type: see :class:`Output`; "latent" leaves decoding to :meth:`decode`.
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
            check_outputs(output_type, callback_on_scale_end)
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
            check_stackable(output_type, inputs.sources)
            seeds, noise = make_noise(seed, generator, samples, noise)
            schedule = inputs.schedule(self._schedule(aspect_ratio, resolution, inputs.seconds, inputs.aspect_ratio))
            settings = replace(self._settings(schedule, arguments), forced=inputs.forced_passes(schedule))
            shown = self.progress if progress is None else progress
            acting, reason = self._acting(method, speedup, settings, samples, shown)
            plan = self._plan(acting, settings, samples)
            if self.processes is not None:
                agreed = self.processes.agree(seeds or (), (inputs.captions, plan, acting, seed))
                seeds, noise = (None, noise) if seeds is None else (agreed, SeededNoise(agreed))
            self._check_memory(plan, acting)
            generators = make_generators(seeds, generator, samples)
            metadata = describe(self.name, self.origin, given, acting, seeds, inputs.captions)
            prepared = Prepared(inputs, plan, acting, seeds, noise, generators, metadata, reason)
            return self._generate(prepared, output_type, callback_on_scale_end, shown)

    def _acting(
        self, method: Method | str | None, speedup: float | None, settings: Settings, samples: int, shown: bool
    ) -> tuple[Method, str]:
        """The method that a call runs, and why, if a speed-up decided its settings."""
        if speedup is None:
            return as_method(method), ""
        if self.processes is not None:
            raise UsageError(
                f"speedup={speedup:g}: is measured in one process, and two run here; give the settings that "
                "for_speedup finds without parallel"
            )
        fitted = fit_speedup(self, speedup, method or "stepvar", settings, samples, progress=shown)
        return fitted.method, fitted.reason

    def _plan(self, method: Method, settings: Settings, samples: int) -> Plan:
        """The plan of a call, made once for all calls alike: on a GPU it would take as long as a small scale."""
        key = (self.model.info, method, settings, samples)
        try:
            plan = self._plans.get(key)
        except TypeError:  # a method with a setting that has no hash, such as an array
            return self._plan_anew(method, settings, samples)
        if plan is None:
            plan = self._plan_anew(method, settings, samples)
            self._plans = dict([*self._plans.items(), (key, plan)][-PLANS:])
        return plan

    def _plan_anew(self, method: Method, settings: Settings, samples: int) -> Plan:
        with blaming(method):
            return method.plan(settings, self.model.info, samples)

    def _generate(
        self,
        prepared: Prepared,
        output_type: OutputType,
        callback: Callable[[Step, Any], None] | None,
        shown: bool,
    ) -> Output:
        """Runs what was prepared, and measures it."""
        inputs, plan, method, seeds = prepared.inputs, prepared.plan, prepared.method, prepared.seeds
        metadata, sources = prepared.metadata, inputs.sources
        recorder, processes = Recorder(self.device), self.processes
        own = plan if processes is None else split_plan(plan, processes)
        returns = processes is None or processes.returns
        with recorder.stage("condition"):
            encoded = inputs.encode(plan.schedule, prepared.generators)
        with scale_bar(shown and returns, plan.pass_weights, callback if returns else None) as on_scale_end:
            state = self.engine.generate(
                self.model, encoded.condition, own, method, prepared.noise, encoded.forced, recorder, on_scale_end
            )
        images: Any = []
        videos: Any = []
        latents = None
        if output_type == "latent" and returns:
            latents = Latents(self.name, state.for_decoding(), metadata, sources, self._fps)
        elif returns:
            with recorder.stage("decode"):
                pixels = self.model.decode(state, self.tile, self.sliced)
        recorder.check_finite(str(method))
        if processes is not None:
            recorder.plan = whole_plan(recorder.plan or plan)
            recorder.engine += ", guidance branches in two processes"
        report = self._report(prepared, encoded, recorder)
        if not returns:
            return Output([], report, seeds, [], inputs.captions, metadata=metadata, fps=self._fps)
        if output_type != "latent":
            images, videos = to_media(pixels, self._fps, output_type, metadata, sources)
        following, kept, said = inputs.next_continuation(state.latent), recorder.kept_maps(), inputs.warnings
        return Output(
            images, report, seeds, kept, inputs.captions, videos, following, metadata, self._fps, sources, latents, said
        )

    def _report(self, prepared: Prepared, encoded: EncodedInputs, recorder: Recorder) -> Report:
        """What a generation cost."""
        plan, method = prepared.plan, prepared.method
        return recorder.report(
            self.name,
            str(method),
            plan.samples,
            self.dtype,
            seeds=prepared.seeds,
            schedule=plan.schedule.name,
            settings=method.settings(),
            chosen=prepared.reason,
            quantization=self.quantization,
            count=flop_counter(self.model, encoded.condition, recorder.plan or plan, method, encoded.forced),
        )

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

    def decode(self, latents: Latents, output_type: MediaType = "pil") -> Any:
        """The images or videos of latents, in the form that a call gives them; :attr:`tile` and :attr:`sliced` hold.

        Args:
            latents: ``output.latents`` of a call with ``output_type="latent"``.

        Raises:
            UsageError: for anything else, or latents of another model.
        """
        if not isinstance(latents, Latents):
            raise UsageError(f"latents={shown(latents)}: give output.latents of a call with output_type='latent'")
        if latents.model != self.name:
            raise UsageError(f"latents of {latents.model}: cannot be decoded by {self.name}; use the model they are of")
        if output_type not in get_args(MediaType):
            raise UsageError(f"output_type={shown(output_type)}: must be one of {', '.join(get_args(MediaType))}")
        with stated_formats():
            pixels = self.model.decode(latents.state, self.tile, self.sliced)
            images, videos = to_media(pixels, latents.fps, output_type, latents.metadata, latents.sources)
        return images if len(images) else videos

    def preview(self, state: Any, output_type: MediaType = "pil", sources: Sequence[Image.Image] = ()) -> Any:
        """The image or video so far of a running generation, for use in ``callback_on_scale_end``.

        Args:
            sources: the images that are edited, whose shape the results then have; without them edits are squares.
        """
        with stated_formats():
            pixels = self.model.decode(state, self.tile, self.sliced)
            images, videos = to_media(pixels, self._fps, output_type, sources=sources)
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
