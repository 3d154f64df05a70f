"""The tiny model of the command line's tests, for evaluations."""

from __future__ import annotations

from tests.cli.conftest import one_thread, run, shared_model

__all__ = ["one_thread", "run", "shared_model"]
