"""Prompts, pictures and videos as conditions of an InfinityStar model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.media.video import Video
from stepvar.models.infinity.inputs import TextConditioner, TextRequest, Texts
from stepvar.models.infinity_star.continuation import Story, begin_story, clip_alone
from stepvar.models.infinity_star.encode import as_pictures, as_videos, given_symbols, video_end
from stepvar.models.infinity_star.model import InfinityStar, VideoCondition
from stepvar.models.infinity_star.schedules import latents_of, seconds_of
from stepvar.models.inputs import Subject, texts
from stepvar.text import TextEncoder


@dataclass(frozen=True)
class VideoRequest:
    """Prompts, each drawn several times, and what their videos begin with.

    Attributes:
        text: the prompts as the model reads them.
        captions: the prompts as they were given, one per video.
        seconds: length of the videos.
        begins: one video per video drawn, of a single frame where a picture was given; empty: nothing is given.
        story: what the videos go on from, for models that tell stories.
    """

    model: InfinityStar
    text: TextRequest
    captions: list[str]
    seconds: float
    begins: Sequence[Video] = ()
    story: Story | None = None

    @property
    def aspect_ratio(self) -> float | None:
        if self.story is not None:
            return self.story.aspect_ratio
        if not self.begins:
            return None
        width, height = self.begins[0].size
        return width / height

    def condition(self) -> VideoCondition:
        text = self.text.condition()
        return VideoCondition(text.prompts, text.negative)

    def schedule(self, schedule: ScaleSchedule) -> ScaleSchedule:
        return schedule if self.story is None else clip_alone(schedule)

    def remembering(self, condition: VideoCondition, schedule: ScaleSchedule) -> VideoCondition:
        return condition if self.story is None else self.story.condition(condition, schedule)

    def next_story(self, latent: Tensor) -> Story | None:
        return None if self.story is None else self.story.next(latent)

    def given(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> Mapping[int, Tensor]:
        return given_symbols(self.model, self.begins, schedule, generators) if self.begins else {}


class VideoConditioner(TextConditioner):
    """Takes prompts as :class:`TextConditioner` does, and a picture or a video to begin with."""

    def __init__(self, encoder: TextEncoder | None, model: InfinityStar) -> None:
        super().__init__(encoder, model.config.text_channels)
        self.model = model

    def request(self, subject: Subject, times: int) -> VideoRequest:  # type: ignore[override]
        begins, latents = self._begins(subject)
        seconds = seconds_of(self.model.config, latents)
        plain = super().request(subject, times)
        captions = plain.captions
        dressed = replace(plain, prompts=self._dressed(plain.prompts, seconds, subject.prompt_suffix))
        if len(begins) not in (0, 1, len(plain.prompts)):
            name = "image" if subject.image is not None else "video"
            raise UsageError(f"{name}: {len(begins)} given for {len(plain.prompts)} prompts; give one, or one each")
        if len(begins) == 1:
            begins = begins * len(plain.prompts)
        begins = [one for one in begins for _ in range(times)]
        return VideoRequest(self.model, dressed, captions, seconds, begins, self._story(subject, len(captions)))

    def _story(self, subject: Subject, samples: int) -> Story | None:
        story, tells = subject.story, self.model.config.tells_stories
        if story is None:
            if tells:
                raise UsageError("story: this model goes on from a video; give what pipe.begin_story(video) returns")
            return None
        if not tells:
            raise UsageError("story: this model draws videos of their own; take the variant that goes on from others")
        if not isinstance(story, Story):
            raise UsageError(f"story: a {type(story).__name__}; give what pipe.begin_story(video) returns")
        if subject.image is not None or subject.video is not None:
            raise UsageError("story: it says how the video begins; leave image and video out")
        if len(story.former) not in (1, samples):
            raise UsageError(f"story: is of {len(story.former)} videos, and {samples} are to be drawn")
        return story

    def begin_story(self, video: object, schedule: Callable[[float], ScaleSchedule], generator: Generator) -> Story:
        if not self.model.config.tells_stories:
            raise UsageError("story: this model draws videos of their own; take the variant that goes on from others")
        first, *more = as_videos(video, self.model.config.fps)
        if more:
            raise UsageError("video: several were given; a story begins with one")
        width, height = first.size
        return begin_story(self.model, first, schedule(width / height), generator)

    def _dressed(self, prompts: Texts, seconds: float, suffix: str | None) -> Texts:
        """Prompts with what the model was trained to read around them; features stay as they are."""
        if not isinstance(prompts, list):
            if suffix:
                raise UsageError("prompt_suffix: the prompt is given as features; encode the suffix with it")
            return prompts
        behind = texts("prompt_suffix", suffix, empty=True)[0] if suffix is not None else ""
        prefix = self.model.config.prompt_prefix.format(seconds=f"{seconds:g}") if seconds else ""
        return [f"{prefix}{prompt}{behind}" for prompt in prompts]

    def _begins(self, subject: Subject) -> tuple[list[Video], int]:
        """What the videos begin with, and how many latent frames they have."""
        config = self.model.config
        latents = config.usual_latents if subject.seconds is None else latents_of(config, subject.seconds)
        if subject.image is not None and subject.video is not None:
            raise UsageError("image and video: give one of them")
        if subject.image is not None:
            if latents == 1:
                raise UsageError("image and seconds=0: a still image would be that image; ask for some seconds")
            return as_pictures(subject.image), latents
        if subject.video is None:
            return [], latents
        longest = max(config.latents, default=1)
        first = 1 + config.clip_frames
        if subject.seconds is None:
            latents = longest
        if latents <= first:
            raise UsageError(
                f"video: this model draws {seconds_of(config, latents):g} seconds, and goes on behind the first "
                f"{seconds_of(config, first):g}; ask for more seconds, or take a variant that draws more"
            )
        frames = config.tokenizer.frames(first)
        return [video_end(one, frames, config.fps) for one in as_videos(subject.video, config.fps)], latents
