"""Prompts, images and videos as inputs of an InfinityStar model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.media.video import Video
from stepvar.models.infinity.inputs import TextInputProcessor, TextInputs
from stepvar.models.infinity_star.continuation import Continuation, clip_alone, start_continuation
from stepvar.models.infinity_star.encode import as_images, as_videos, forced_bits, forced_passes, video_end
from stepvar.models.infinity_star.model import InfinityStar, VideoCondition
from stepvar.models.infinity_star.schedules import latents_of, seconds_of
from stepvar.models.inputs import EncodedInputs, GenerationInputs, PreparedInputs, texts
from stepvar.text import TextEncoder, TextFeatures

FROM_VIDEO = "give what pipe.start_continuation(video) returns"
NO_CONTINUATION = "continuation: this model generates videos of their own; take the variant that goes on from others"


@dataclass(frozen=True)
class VideoInputs(PreparedInputs):
    """Prompts, each generated several times, and what their videos go on from.

    Attributes:
        text: the prompts as the model reads them.
        texts: the prompts as they were given, one per video.
        seconds: length of the videos.
        begins: one video per generated video, of a single frame where an image was given; empty: nothing is given.
        former: what the videos go on from, for models that go on clip by clip.
    """

    model: InfinityStar
    text: TextInputs
    texts: list[str]
    seconds: float
    begins: Sequence[Video] = ()
    former: Continuation | None = None

    @property
    def captions(self) -> list[str]:
        return self.texts

    @property
    def warnings(self) -> list[list[str]]:
        return self.text.warnings

    @property
    def aspect_ratio(self) -> float | None:  # type: ignore[override]
        if self.former is not None:
            return self.former.aspect_ratio
        if not self.begins:
            return None
        width, height = self.begins[0].size
        return width / height

    def schedule(self, schedule: ScaleSchedule) -> ScaleSchedule:
        return schedule if self.former is None else clip_alone(schedule)

    def forced_passes(self, schedule: ScaleSchedule) -> frozenset[int]:
        if not self.begins:
            return frozenset()
        return forced_passes(schedule, self.model.config.tokenizer.latent_frames(len(self.begins[0])))

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        text = self.text.condition()
        condition = VideoCondition(text.prompts, text.negative)
        if self.former is not None:
            condition = self.former.condition(condition, schedule)
        return EncodedInputs(
            condition, forced_bits(self.model, self.begins, schedule, generators) if self.begins else {}
        )

    def next_continuation(self, latent: Tensor) -> Continuation | None:
        return None if self.former is None else self.former.next(latent)


class VideoInputProcessor(TextInputProcessor):
    """Takes prompts as :class:`TextInputProcessor` does, and an image or a video to go on from."""

    def __init__(self, encoder: TextEncoder | None, model: InfinityStar) -> None:
        super().__init__(encoder, model.config.text_channels)
        self.model = model

    def prepare(self, inputs: GenerationInputs, times: int) -> VideoInputs:
        begins, latents = self._begins(inputs)
        seconds = seconds_of(self.model.config, latents)
        plain = self.prepare_text(inputs, times)
        captions = plain.captions
        dressed = replace(plain, prompts=self._dressed(plain.prompts, seconds, inputs.prompt_suffix))
        if len(begins) not in (0, 1, len(plain.prompts)):
            name = "image" if inputs.image is not None else "video"
            raise UsageError(f"{name}: {len(begins)} given for {len(plain.prompts)} prompts; give one, or one each")
        if len(begins) == 1:
            begins = begins * len(plain.prompts)
        begins = [one for one in begins for _ in range(times)]
        return VideoInputs(self.model, dressed, captions, seconds, begins, self._continuation(inputs, len(captions)))

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        wanted, config = super().example(tokens), self.model.config
        if not config.continues_videos:
            return wanted
        grid = (schedule or self.model.schedule(1.0)).grids[-1]
        former = torch.zeros(1, config.token_channels, 1 + config.clip_frames, grid.h, grid.w)
        return replace(wanted, continuation=Continuation(former, former[:, :, :1]))

    def _continuation(self, inputs: GenerationInputs, samples: int) -> Continuation | None:
        given, continues = inputs.continuation, self.model.config.continues_videos
        if given is None:
            if continues:
                raise UsageError(f"continuation: this model goes on from a video; {FROM_VIDEO}")
            return None
        if not continues:
            raise UsageError(NO_CONTINUATION)
        if not isinstance(given, Continuation):
            raise UsageError(f"continuation: a {type(given).__name__}; {FROM_VIDEO}")
        if inputs.image is not None or inputs.video is not None:
            raise UsageError("continuation: it says how the video begins; leave image and video out")
        if len(given.former) not in (1, samples):
            raise UsageError(f"continuation: is of {len(given.former)} videos, and {samples} are to be generated")
        return given

    def start_continuation(
        self, video: object, schedule: Callable[[float], ScaleSchedule], generator: Generator
    ) -> Continuation:
        if not self.model.config.continues_videos:
            raise UsageError(NO_CONTINUATION)
        first, *more = _some("video", as_videos(video, self.model.config.fps))
        if more:
            raise UsageError("video: several were given; a continuation starts from one")
        width, height = first.size
        return start_continuation(self.model, first, schedule(width / height), generator)

    def _dressed(
        self, prompts: list[str] | TextFeatures, seconds: float, suffix: str | None
    ) -> list[str] | TextFeatures:
        """Prompts with what the model was trained to read around them; features stay as they are."""
        if not isinstance(prompts, list):
            if suffix:
                raise UsageError("prompt_suffix: the prompt is given as features; encode the suffix with it")
            return prompts
        after = texts("prompt_suffix", suffix, empty=True)[0] if suffix is not None else ""
        prefix = self.model.config.prompt_prefix.format(seconds=f"{seconds:g}") if seconds else ""
        return [f"{prefix}{prompt}{after}" for prompt in prompts]

    def _begins(self, inputs: GenerationInputs) -> tuple[list[Video], int]:
        """What the videos begin with, and how many latent frames they have."""
        config = self.model.config
        latents = config.usual_latents if inputs.seconds is None else latents_of(config, inputs.seconds)
        if inputs.image is not None and inputs.video is not None:
            raise UsageError("image and video: give one of them")
        if inputs.image is not None:
            if latents == 1:
                raise UsageError("image and seconds=0: a still image would be that image; ask for some seconds")
            return _some("image", as_images(inputs.image)), latents
        if inputs.video is None:
            return [], latents
        longest = max(config.latents, default=1)
        first = 1 + config.clip_frames
        if inputs.seconds is None:
            latents = longest
        if latents <= first:
            raise UsageError(
                f"video: this model generates {seconds_of(config, latents):g} seconds, and goes on behind the first "
                f"{seconds_of(config, first):g}; ask for more seconds, or take a variant that generates more"
            )
        frames = config.tokenizer.frames(first)
        videos = _some("video", as_videos(inputs.video, config.fps))
        return [video_end(one, frames, config.fps) for one in videos], latents


def _some(name: str, videos: list[Video]) -> list[Video]:
    """At least one: an empty list, such as of a search that found no file, is not the same as none."""
    if not videos:
        raise UsageError(f"{name}: an empty list; give one, one per prompt, or leave it out")
    return videos
