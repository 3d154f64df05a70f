"""A speed-up in place of settings on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stepvar.cli import options
from stepvar.errors import UsageError

if TYPE_CHECKING:
    from stepvar.cost.speedup import Fitted
    from stepvar.methods import Method
    from stepvar.pipeline import Pipeline

SCOPES = ("image", "scales")
SETTINGS = (
    "guidance_scale",
    "guidance_schedule",
    "guidance_type",
    "temperature",
    "top_k",
    "top_p",
    "more_smooth",
    "aspect_ratio",
    "resolution",
    "seconds",
)
"""Settings of a call that say what a dense generation does."""


def parse_scope(scope: str | None, speedup: float | None) -> str:
    """What a speed-up applies to.

    Raises:
        UsageError: for another word, or one without a speed-up.
    """
    if scope is not None and speedup is None:
        raise UsageError(f"speedup-of {scope!r}: says what --speedup applies to; give a speed-up, too")
    if scope is not None and scope not in SCOPES:
        raise UsageError(f"speedup-of {scope!r}: must be one of {', '.join(SCOPES)}")
    return scope or SCOPES[0]


def method_to_fit(name: str, given: dict[str, str | None], settings: Sequence[str]) -> Method | str:
    """A method whose settings a speed-up may decide, from the texts of :func:`~stepvar.cli.options.parse_method`.

    "auto" stays as it is: which method that means depends on the model.

    Raises:
        UsageError: if one of them was given.
    """
    from stepvar.methods.compose import Compose
    from stepvar.methods.registry import AUTO

    for option, text in given.items():
        if text is not None:
            raise UsageError(f"speedup and {option}: give one of them; the speed-up decides what is kept")
    if name == AUTO and settings:
        raise UsageError(
            f"method {name!r} and set {settings[0]!r}: it chooses the settings, too; name a method to set some"
        )
    if name == AUTO:
        return name
    method = options.parse_method(name, given, settings)
    varied = method.varied if isinstance(method, Compose) else method
    for setting in settings:
        owner, _, key = setting.partition("=")[0].strip().replace("-", "_").rpartition(".")
        if key in varied.speedup_settings and owner in ("", varied.name.replace("-", "_")):
            raise UsageError(f"speedup and {key}: give one of them; the speed-up decides {key} of {varied.name}")
    return method


def fit_settings(
    pipe: Pipeline,
    speedup: float,
    scope: str,
    method: Method | str,
    samples: int,
    settings: dict[str, Any],
    quiet: bool,
) -> Fitted:
    """The settings that meet a speed-up; a few of them are measured on the first use."""
    from stepvar.cost.speedup import fit_speedup

    dense = pipe.settings(**{name: settings[name] for name in SETTINGS if name in settings})
    fitted = fit_speedup(pipe, speedup, method, dense, samples, scope, progress=not quiet)  # type: ignore[arg-type]
    if not quiet:
        print(fitted)
    return fitted
