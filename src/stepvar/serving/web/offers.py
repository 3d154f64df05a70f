"""What the page offers for a model: its shapes, the methods that run on it, and what can be asked of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal

from stepvar.checkpoints.examples import EXAMPLES
from stepvar.errors import UsageError
from stepvar.methods import all_methods, make_method
from stepvar.methods.base import Method
from stepvar.methods.registry import summary_of
from stepvar.models.inputs import GenerationInputs
from stepvar.pipeline import Pipeline

Budget = Literal["keep", "speedup"]
"""How much a method may compute: a share of the tokens, or so little that it is this many times as fast."""


@dataclass(frozen=True)
class MethodOffer:
    """A method that runs on the model.

    Attributes:
        summary: what it does, in a line.
        budgets: what may be asked of it; empty: it has no setting of the kind.
    """

    name: str
    summary: str
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class Offer:
    """What a model generates, as images or as videos.

    Attributes:
        model: its name.
        about: size, device and precision, in words.
        video: whether this is about videos.
        argument: the input of the pipeline that says what to generate: ``"prompt"`` or ``"class_labels"``.
        negative: whether the model takes a negative prompt.
        edits: whether it changes an image, which has to be given.
        shapes: what each is called, and its width over height; one: there is no choice, as for edits, which have
            the shape of their image.
        methods: those that the model runs.
        examples: prompts to begin with.
    """

    model: str
    about: str
    video: bool
    argument: str
    negative: bool
    edits: bool
    shapes: tuple[tuple[str, float], ...]
    methods: tuple[MethodOffer, ...]
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, pipe: Pipeline, video: bool = False) -> Offer:
        """What a pipeline can do; with ``video``, one that generates videos."""
        weights = sum(weight.numel() for weight in pipe.model.parameters())
        precision = pipe.quantization or str(pipe.dtype).removeprefix("torch.")
        return cls(
            model=pipe.name,
            about=f"{weights / 1e6:,.1f} M parameters, {pipe.device}, {precision}",
            video=video,
            argument=pipe.inputs.argument,
            negative=_takes_negative(pipe),
            edits=pipe.family.edits,
            shapes=tuple(_shapes(pipe))[: 1 if pipe.family.edits else None],
            methods=tuple(_methods(pipe, length(pipe, video))),
            examples=EXAMPLES[pipe.name].offered if pipe.name in EXAMPLES else (),
        )

    def method(self, name: str) -> MethodOffer:
        """The method of a name; a UsageError for one that is not offered."""
        for offer in self.methods:
            if offer.name == name:
                return offer
        raise UsageError(f"method {name!r}: choose one of {', '.join(offer.name for offer in self.methods)}")


def length(pipe: Pipeline, video: bool) -> float | None:
    """The argument ``seconds`` of a pipeline: a model of videos draws a still image at 0."""
    return 0.0 if pipe.family.video and not video else None


def _takes_negative(pipe: Pipeline) -> bool:
    """Whether the inputs of a family accept a negative prompt; nothing is encoded to find out."""
    if pipe.inputs.argument != "prompt":
        return False
    try:
        pipe.inputs.prepare(GenerationInputs(prompt="a", negative_prompt="a"), 1)
    except UsageError as error:
        return not str(error).startswith("negative_prompt")
    return True


def _shapes(pipe: Pipeline) -> Iterator[tuple[str, float]]:
    """The shapes of the resolution that the model was made for: first its own, then from tall to wide."""
    own, stride = pipe.schedule(), pipe.model.config.stride
    resolution = own.name.split()[0]
    found = {1 / ratio: grid for name, ratio, grid in pipe.model.shapes() if name in (None, resolution)}
    for ratio, grid in sorted(found.items(), key=lambda one: (one[1].shape[1:] != own[-1].shape[1:], one[0])):
        near = Fraction(ratio).limit_denominator(8)
        yield f"{near.numerator}:{near.denominator} ({grid.w * stride}×{grid.h * stride})", ratio


def _methods(pipe: Pipeline, seconds: float | None) -> Iterator[MethodOffer]:
    """Those whose own settings fit the model, in the order of the registry."""
    settings = pipe.settings(seconds=seconds)
    for name, method in all_methods().items():
        try:
            make_method(name).plan(settings, pipe.model.info, 1)
        except UsageError:
            continue
        yield MethodOffer(name, summary_of(method), tuple(_budgets(method)))


def _budgets(method: type[Method]) -> Iterator[Budget]:
    if not method.speedup_settings:
        return
    kept = next((field.default for field in fields(method) if field.name == "keep"), None)
    if isinstance(kept, float):  # a share for all pruned scales; some methods have a table in its place
        yield "keep"
    yield "speedup"
