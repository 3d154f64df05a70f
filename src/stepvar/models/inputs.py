"""What to draw: from the arguments of a call to the condition of a model, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.text import ContextFeatures

VIDEO_ONLY = ("seconds", "image", "video", "prompt_suffix", "story")
"""What only models that draw videos take of a subject."""


@dataclass(frozen=True)
class Subject:
    """What a caller wants drawn; a family takes some of these and refuses the others.

    Attributes:
        prompt, negative_prompt: texts, one or a list.
        prompt_embeds, negative_prompt_embeds: text features computed elsewhere, (L, C), (B, L, C) or a list of (L, C);
            with mask and places where a model reads padding, too.
        class_labels: names or numbers of classes, one or a list.
        seconds: length of the video; 0 stands for a still image.
        image: a picture that the video begins with, or one per prompt.
        video: a video that is to go on, or one per prompt.
        prompt_suffix: goes behind every prompt.
        story: what the next clip of a longer video goes on from.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | Sequence[Tensor] | ContextFeatures | None = None
    negative_prompt_embeds: Tensor | Sequence[Tensor] | None = None
    class_labels: str | int | Sequence[str | int] | None = None
    seconds: float | None = None
    image: Any = None
    video: Any = None
    prompt_suffix: str | None = None
    story: Any = None

    def refuse(self, names: Sequence[str], instead: str) -> None:
        """Raises a UsageError if one of the named arguments was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise UsageError(f"{name}: this model does not take it; give {instead}")


class Request(Protocol):
    """A subject that a model can draw."""

    @property
    def captions(self) -> list[str]:
        """What each image shows, in words: one text per image."""
        ...

    def condition(self) -> Any:
        """The condition in the family's own form; this is where texts are encoded."""
        ...


@runtime_checkable
class MovingRequest(Request, Protocol):
    """A subject that a model can draw as a video.

    Attributes:
        seconds: length of the video.
        aspect_ratio: width over height of the picture or video that it goes on from, if there is one.
    """

    @property
    def seconds(self) -> float: ...

    @property
    def aspect_ratio(self) -> float | None: ...

    def schedule(self, schedule: ScaleSchedule) -> ScaleSchedule:
        """The passes of a model's own schedule that this subject needs."""
        ...

    def remembering(self, condition: Any, schedule: ScaleSchedule) -> Any:
        """A condition together with what is remembered of earlier clips."""
        ...

    def next_story(self, latent: Tensor) -> Any:
        """What the next clip goes on from, after the latent video that was drawn; None if there is no story."""
        ...

    def given(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> Mapping[int, Tensor]:
        """The symbols of the passes that need not be drawn, by pass; this is where pictures and videos are encoded.

        Args:
            generators: one per video, for what encoding draws.
        """
        ...


class Conditioner(Protocol):
    """How a family turns subjects into conditions.

    Attributes:
        argument: the field of a subject that says what to draw: ``"prompt"`` or ``"class_labels"``.
    """

    argument: str

    def request(self, subject: Subject, times: int) -> Request:
        """Checks a subject, of which each prompt or class is drawn ``times`` times.

        Raises:
            UsageError: for what this family cannot draw.
        """
        ...

    def example(self) -> Subject:
        """Something to draw for which no text is encoded, to measure with: a class, or features that mean nothing."""
        ...

    def guidance(self, scale: float, scales: int) -> tuple[float, ...]:
        """The guidance of each scale that one number stands for."""
        ...


@runtime_checkable
class Storyteller(Protocol):
    """A conditioner of a model that draws videos clip by clip."""

    def begin_story(self, video: Any, schedule: Callable[[float], ScaleSchedule], generator: Generator) -> Any:
        """What the first clip of a story goes on from.

        Args:
            video: what is remembered.
            schedule: from the width over height of the video to that of the clips.
            generator: for what encoding draws.

        Raises:
            UsageError: if the model tells no stories, or the video is too short.
        """
        ...


def texts(name: str, given: str | Sequence[str], empty: bool = False) -> list[str]:
    """One text or several as a list.

    Args:
        name: of the argument, for errors.
        empty: whether an empty text is allowed.

    Raises:
        UsageError: for anything else.
    """
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, (list, tuple)) or not several:
        raise UsageError(f"{name}={given!r}: give a string or a list of strings")
    for text in several:
        if not isinstance(text, str):
            raise UsageError(f"{name}: {text!r} is not a string")
        if not empty and not text.strip():
            raise UsageError(f"{name}={text!r}: is empty; say what to draw")
    return list(several)
