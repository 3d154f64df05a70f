"""The tiny model of the command line's tests, for evaluations."""

from __future__ import annotations

from tests.cli.conftest import run, shared_model

__all__ = ["run", "shared_model"]
