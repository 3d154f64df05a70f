"""Options that several commands take together: a group is a dataclass, of which each field is an option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from stepvar.cli import options
from stepvar.core.values import DEFAULT_MODEL

if TYPE_CHECKING:
    from stepvar.pipeline import Pipeline

MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="See 'stepvar methods'; several at once: stepvar+drop-guidance. Default: stepvar where anything else asks "
        "for a method, such as --keep; else dense.",
    ),
]
Negative = Annotated[str | None, typer.Option(help="What to lead away from.")]
GuidanceSchedule = Annotated[
    str | None,
    typer.Option(
        help="How one guidance scale is spread over the scales: constant, linear, linear-hold, linear-window, "
        "linear-late-window."
    ),
]
GuidanceType = Annotated[str | None, typer.Option(help="How the guidance branches are combined: cfg or apg.")]
TopK = Annotated[int | None, typer.Option(help="Classes kept before sampling; 1 takes the most likely.")]
TopP = Annotated[float | None, typer.Option(help="Probability kept before sampling.")]
MoreSmooth = Annotated[
    bool | None,
    typer.Option(help="Models with a codebook: blends of codes, which look smoother; default: the model's own."),
]
Suffix = Annotated[str | None, typer.Option("--prompt-suffix", help="Video models: goes after every prompt.")]


@dataclass(frozen=True)
class Precision:
    """Where a model computes, and in which numbers."""

    device: options.Device = "cpu"
    dtype: options.Dtype = "float32"
    quantization: options.Quantization = None

    def check(self) -> None:
        """Raises a UsageError for a device that this machine lacks, or no precision, before anything is read."""
        options.parse_device(self.device), options.parse_dtype(self.dtype)


@dataclass(frozen=True)
class Source:
    """Which model, and its text encoder."""

    model: options.Model = DEFAULT_MODEL
    variant: options.Variant = None
    revision: options.Revision = None
    text_encoder: options.TextEncoder = None

    def loader(self, precision: Precision, memory: options.Memory) -> Callable[[], Pipeline]:
        """What loads it when it is called."""
        place, dtype = precision.device, precision.dtype
        source = (self.model, place, dtype, self.variant, self.revision, self.text_encoder)
        return partial(options.load_pipeline, *source, memory, precision.quantization)


@dataclass(frozen=True)
class Acceleration:
    """The method that runs, and its settings."""

    method: MethodName = None
    keep: options.Keep = None
    last: options.Last = None
    set_: options.Settings = None

    def asked(self, acts: bool = False) -> tuple[str, dict[str, str | None], list[str]]:
        """The arguments of :func:`~stepvar.cli.options.parse_method`.

        Args:
            acts: whether it is no dense generation whatever the settings say.
        """
        name = self.method
        if name is None:
            acts = acts or self.keep is not None or self.last is not None or bool(self.set_)
            name = "stepvar" if acts else "dense"
        return name, {"keep": self.keep, "last": self.last}, self.set_ or []


@dataclass(frozen=True)
class Sampling:
    """Arguments of a pipeline's call, by their names: what to generate, and how to sample."""

    negative_prompt: Negative = None
    guidance_scale: options.GuidanceScale = None
    guidance_schedule: GuidanceSchedule = None
    guidance_type: GuidanceType = None
    temperature: options.Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    more_smooth: MoreSmooth = None
    aspect_ratio: options.AspectRatio = None
    resolution: options.Resolution = None
    seconds: options.Seconds = None
    prompt_suffix: Suffix = None

    def arguments(self) -> dict[str, Any]:
        """All of them.

        Raises:
            UsageError: for texts that are no numbers.
        """
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        per_scale = ("guidance_scale", "temperature")
        return found | {name: options.parse_numbers(name, found[name]) for name in per_scale}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer reads it: in place of each parameter that is a group stand the fields of the group.

    Raises:
        UsageError: when it is called, for values that a group refuses.
    """
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        groups[name], hints = kind, get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            own = Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            parameters.append(own)

    def flat(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    flat.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return flat
