"""Packages of the ``eval`` extra, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stepvar.errors import UsageError


def require(name: str) -> Any:
    """A module of torchmetrics or matplotlib.

    Raises:
        UsageError: if its package is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UsageError(f"evaluation: needs the package {package}; pip install '.[eval]' in the checkout") from None
