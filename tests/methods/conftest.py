"""Fixtures of the tests of methods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stepvar.methods import METHODS


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What a test registers is forgotten afterwards."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
