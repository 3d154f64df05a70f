"""What to generate: from the arguments of a call to the condition of a model, checked before anything is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image
from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.core.values import as_list, shown
from stepvar.errors import UsageError
from stepvar.text import ContextFeatures, Encoder, PooledFeatures, TextFeatures, WordEncoder

Features = TypeVar("Features", TextFeatures, ContextFeatures, PooledFeatures)

VIDEO_ONLY = ("seconds", "image", "video", "prompt_suffix", "continuation")
"""The inputs that only models which generate videos take."""


@dataclass(frozen=True)
class GenerationInputs:
    """What a caller wants generated; a family takes some of these and refuses the others.

    Attributes:
        prompt, negative_prompt: texts, one or a list.
        prompt_embeds, negative_prompt_embeds: text features computed elsewhere, (L, C), (B, L, C) or a list of (L, C);
            with mask and places where a model reads padding, too, or with a pooled vector where it reads one.
        class_labels: names or numbers of classes, one or a list.
        seconds: length of the video; 0 stands for a still image.
        image: an image that the video begins with, or that is edited, or one per prompt.
        video: a video to go on from, or one per prompt.
        prompt_suffix: goes after every prompt.
        continuation: what the next clip of a longer video goes on from.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | Sequence[Tensor] | ContextFeatures | PooledFeatures | None = None
    negative_prompt_embeds: Tensor | Sequence[Tensor] | PooledFeatures | None = None
    class_labels: str | int | Sequence[str | int] | None = None
    seconds: float | None = None
    image: Any = None
    video: Any = None
    prompt_suffix: str | None = None
    continuation: Any = None

    def refuse(self, names: Sequence[str], instead: str) -> None:
        """Raises a UsageError if one of the named arguments was given."""
        for name in names:
            if getattr(self, name) is not None:
                also = " or changes images" if name == "image" else ""
                raise UsageError(f"{name}: this model does not take it; give {instead}{also}")


@dataclass(frozen=True)
class EncodedInputs:
    """Inputs as a model takes them.

    Attributes:
        condition: in the family's own form.
        forced: indices or bits (B, N, ...) of the passes whose codes are given, by pass.
    """

    condition: Any
    forced: Mapping[int, Tensor] = field(default_factory=dict)


class PreparedInputs(ABC):
    """Checked inputs of a generation; nothing has been encoded yet. The defaults are those of an image model.

    Attributes:
        seconds: length of the video; None for models that generate images.
        aspect_ratio: width over height of the image or video to go on from, if there is one.
    """

    seconds: float | None = None
    aspect_ratio: float | None = None

    @property
    def sources(self) -> list[Image.Image]:
        """The image that each result is an edit of; empty where nothing is edited.

        A model edits a square with the image in its top left corner, from which the result is cut.
        """
        return []

    @property
    @abstractmethod
    def captions(self) -> list[str]:
        """What each image shows, in words: one text per image."""

    @property
    def warnings(self) -> list[list[str]]:
        """What the text encoder leaves out, in words: one list per image, empty where it reads all."""
        return [[] for _ in self.captions]

    def schedule(self, schedule: ScaleSchedule) -> ScaleSchedule:
        """The passes of a model's own schedule that these inputs need."""
        return schedule

    def forced_passes(self, schedule: ScaleSchedule) -> frozenset[int]:
        """The passes whose codes :meth:`encode` will give."""
        return frozenset()

    @abstractmethod
    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        """The inputs as the model takes them; this is where texts, images and videos are encoded.

        Args:
            generators: one per image or video, for what encoding samples.
        """

    def next_continuation(self, latent: Tensor) -> Any:
        """What the next clip goes on from, after the accumulated latent of this one; None: nothing goes on."""
        return None


class InputProcessor(ABC):
    """How a family turns inputs into conditions.

    Attributes:
        argument: the input that says what to generate: ``"prompt"`` or ``"class_labels"``.
    """

    argument: ClassVar[str] = "prompt"

    @abstractmethod
    def prepare(self, inputs: GenerationInputs, times: int) -> PreparedInputs:
        """Checks inputs, of which each prompt or class is generated ``times`` times.

        Raises:
            UsageError: for what this family cannot generate.
        """

    @abstractmethod
    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        """Inputs for which no text is encoded, to measure with: a class, or features that mean nothing.

        Args:
            tokens: of the text, where its length is free.
            schedule: what is to be generated; None: the model's own.
        """

    def start_continuation(self, video: Any, schedule: Callable[[float], ScaleSchedule], generator: Generator) -> Any:
        """What the first of several clips goes on from.

        Args:
            video: a video to go on from.
            schedule: from the width over height of the video to that of the clips.
            generator: for what encoding samples.

        Raises:
            UsageError: if the model does not go on from videos, or the video is too short.
        """
        raise UsageError("continuation: this model generates images; take a model that generates videos")


@dataclass(frozen=True)
class PromptInputs(PreparedInputs, Generic[Features]):
    """Prompts, or their features, each generated ``times`` times in a row.

    Attributes:
        encoder: turns prompts into features; None if only features are given.
        prompts: one entry per prompt.
        times: images per prompt.
        negatives: one entry per prompt; None: there is no text to lead away from.
    """

    encoder: Encoder[Features] | None
    prompts: list[str] | Features
    times: int
    negatives: list[str] | Features | None

    def __post_init__(self) -> None:
        encoder = self._words
        for name, given in (("prompt", self.prompts), ("negative_prompt", self.negatives)):
            if encoder is not None and isinstance(given, list):
                for text in given:
                    encoder.check(text, name)

    @property
    def _words(self) -> WordEncoder | None:
        """The encoder, if it knows some words only."""
        encoder = getattr(self.encoder, "encoder", self.encoder)  # behind a cache
        return encoder if isinstance(encoder, WordEncoder) else None

    @property
    def warnings(self) -> list[list[str]]:
        encoder, found = self._words, [dict[str, None]() for _ in range(len(self.prompts))]
        for given in (self.prompts, self.negatives):
            if encoder is not None and isinstance(given, list):
                for own, text in zip(found, given, strict=True):
                    own |= dict.fromkeys(filter(None, [encoder.remark(text)]))
        return [list(own) for own in found for _ in range(self.times)]

    @property
    def captions(self) -> list[str]:
        known = self.prompts
        captions = known if isinstance(known, list) else ["(text features)"] * len(known)
        return [caption for caption in captions for _ in range(self.times)]

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        return EncodedInputs(self.features(self.prompts))

    def features(self, given: list[str] | Features) -> Features:
        """The features of texts, one row per image."""
        if isinstance(given, list):
            assert self.encoder is not None  # checked when the inputs were prepared
            given = self.encoder.encode(given)
        return given.repeat(self.times)


class PromptInputProcessor(InputProcessor, Generic[Features]):
    """Base of those that take prompts or their features.

    Args:
        encoder: None if the caller brings features only.
    """

    def __init__(self, encoder: Encoder[Features] | None) -> None:
        self.encoder: Encoder[Features] | None = encoder

    @abstractmethod
    def read_features(self, name: str, given: Any) -> Features:
        """Features that a caller gave in the argument ``name``, checked."""

    def read_prompts(self, inputs: GenerationInputs) -> list[str] | Features:
        prompts = self.words_or_features("prompt", inputs.prompt, inputs.prompt_embeds)
        if prompts is None:
            raise UsageError("prompt: say what to generate, in words or as prompt_embeds")
        return prompts

    def words_or_features(
        self, name: str, words: str | Sequence[str] | None, features: Any
    ) -> list[str] | Features | None:
        """The one of both that was given in the arguments ``name`` and ``{name}_embeds``, checked."""
        if words is not None and features is not None:
            raise UsageError(f"{name} and {name}_embeds: give one of them")
        if features is not None:
            return self.read_features(f"{name}_embeds", features)
        if words is None:
            return None
        if self.encoder is None:
            raise UsageError(f"{name}: the pipeline was made without a text encoder; give {name}_embeds")
        return texts(name, words, empty=name == "negative_prompt")

    def one_per_prompt(self, negatives: list[str] | Features, count: int) -> list[str] | Features:
        """Negative prompts, of which one stands for all.

        Raises:
            UsageError: if there are neither one nor as many as prompts.
        """
        if len(negatives) == count:
            return negatives
        if len(negatives) != 1:
            raise UsageError(f"negative_prompt: {len(negatives)} given for {count} prompts; give one, or one each")
        return negatives * count if isinstance(negatives, list) else negatives.repeat(count)


def texts(name: str, given: str | Sequence[str], empty: bool = False) -> list[str]:
    """One text or several as a list.

    Args:
        name: of the argument, for errors.
        empty: whether an empty text is allowed.

    Raises:
        UsageError: for anything else.
    """
    several = [given] if isinstance(given, str) else as_list(given)
    if not several:
        raise UsageError(f"{name}={shown(given)}: give a string or a list of strings")
    for text in several:
        if not isinstance(text, str):
            raise UsageError(f"{name}: {shown(text)} is not a string")
        if not empty and not text.strip():
            raise UsageError(f"{name}={shown(text)}: is empty; say what to generate")
    return list(several)
