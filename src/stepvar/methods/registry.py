"""The methods by name, alone and together: ``stepvar``, ``fastvar:hart``, ``stepvar+drop-guidance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from stepvar.errors import UsageError
from stepvar.methods.base import Method
from stepvar.methods.baselines import PCA, Dense, HighPass, Random, SkipLast
from stepvar.methods.blend import BlendedPruning
from stepvar.methods.compose import Compose
from stepvar.methods.coverage import Coverage
from stepvar.methods.drop_guidance import DropGuidance
from stepvar.methods.fastvar import FastVAR
from stepvar.methods.latent_delta import LatentDelta
from stepvar.methods.norms import L2Norm, MeanDistance
from stepvar.methods.sparsevar import SparseVAR
from stepvar.methods.stepvar import StepVAR
from stepvar.methods.taper import TaperedPruning

_ROWS: tuple[type[Method], ...] = (
    Dense,
    StepVAR,
    FastVAR,
    SparseVAR,
    HighPass,
    PCA,
    L2Norm,
    MeanDistance,
    LatentDelta,
    Random,
    SkipLast,
    DropGuidance,
    Coverage,
    BlendedPruning,
    TaperedPruning,
)

METHODS: dict[str, type[Method]] = {method.name: method for method in _ROWS}


@dataclass(frozen=True)
class Part:
    """A method as it is named: its class, and the settings of the preset that was named with it."""

    method: type[Method]
    preset: Mapping[str, Any]

    @property
    def known(self) -> list[str]:
        """Names of the settings."""
        return [field.name for field in fields(self.method)]


def named_parts(name: str) -> list[Part]:
    """The methods of a name: one, or several joined by ``+``; each may have a preset behind a colon.

    Raises:
        UsageError: for an unknown method or preset, naming those that exist.
    """
    return [_part(part.strip()) for part in name.split("+")]


def _part(name: str) -> Part:
    method_name, colon, preset = name.partition(":")
    if method_name not in METHODS:
        raise UsageError(f"method {method_name!r}: unknown; choose one of {', '.join(METHODS)}")
    method = METHODS[method_name]
    if not colon:
        return Part(method, {})
    if preset not in method.presets:
        has = f"it has {', '.join(method.presets)}" if method.presets else "it has none"
        raise UsageError(f"preset {preset!r}: not one of method {method_name!r}; {has}")
    return Part(method, method.presets[preset])


def assign_settings(parts: Sequence[Part], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Which part each setting belongs to: ``last``, or ``drop-guidance.last`` where several parts have it.

    Raises:
        UsageError: for a setting that no part has, or that several have.
    """
    owned: list[dict[str, Any]] = [{} for _ in parts]
    names = [part.method.name for part in parts]
    for setting, value in settings.items():
        owner, _, key = setting.rpartition(".")
        if owner and owner not in names:
            raise UsageError(f"{setting}: {owner!r} is not one of the methods given: {', '.join(names)}")
        known = [index for index, part in enumerate(parts) if owner in ("", names[index]) and key in part.known]
        if not known:
            raise UsageError(f"{setting}: not a setting of {_describe(parts)}")
        if len(known) > 1:
            choices = " or ".join(f"{names[index]}.{key}" for index in known)
            raise UsageError(f"{setting}: several of the methods have it; say which: {choices}")
        owned[known[0]][key] = value
    return owned


def _describe(parts: Sequence[Part]) -> str:
    if len(parts) > 1:
        return ", or of ".join(_describe([part]) for part in parts)
    known = parts[0].known
    has = f"its settings are {', '.join(known)}" if known else "it has no settings"
    return f"method {parts[0].method.name!r}; {has}"


def build(parts: Sequence[Part], owned: Sequence[Mapping[str, Any]]) -> Method:
    """The method of these parts with their settings; those of a preset hold where no other is given."""
    methods = [part.method(**{**part.preset, **own}) for part, own in zip(parts, owned, strict=True)]
    return methods[0] if len(methods) == 1 else Compose(*methods)


def make_method(name: str, **settings: Any) -> Method:
    """Builds a method from its name and settings.

    Args:
        name: a method, a method with a preset (``"fastvar:hart"``), or several (``"stepvar+drop-guidance"``).
        settings: by name, or as ``**{"drop-guidance.last": 2}`` where several methods have one of that name.

    Raises:
        UsageError: for an unknown name, preset or setting, naming those that exist.
    """
    parts = named_parts(name)
    return build(parts, assign_settings(parts, settings))
