"""Acceleration methods. A new one is a file in this folder and a row in ``METHODS``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stepvar.errors import UsageError
from stepvar.methods.base import Method
from stepvar.methods.baselines import PCA, Dense, HighPass, Random, SkipLast
from stepvar.methods.fastvar import FastVAR
from stepvar.methods.stepvar import StepVAR

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Dense, StepVAR, FastVAR, HighPass, PCA, Random, SkipLast)
}


def make_method(name: str, **settings: Any) -> Method:
    """Builds a method from its name and settings.

    Raises:
        UsageError: for an unknown name or setting, naming those that exist.
    """
    if name not in METHODS:
        raise UsageError(f"method {name!r}: unknown; choose one of {', '.join(METHODS)}")
    known = [field.name for field in fields(METHODS[name])]
    for setting in settings:
        if setting not in known:
            has = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise UsageError(f"{setting}: not a setting of method {name!r}; {has}")
    return METHODS[name](**settings)


__all__ = [
    "METHODS",
    "PCA",
    "Dense",
    "FastVAR",
    "HighPass",
    "Method",
    "Random",
    "SkipLast",
    "StepVAR",
    "make_method",
]
