"""Packages of the extras, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stepvar.errors import UsageError


def require(name: str, extra: str = "eval", what: str = "evaluation") -> Any:
    """The module ``name``, of a package that the extra brings; ``what`` needs it.

    Raises:
        UsageError: if its package is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UsageError(f"{what}: needs the package {package}; pip install '.[{extra}]' in the checkout") from None
