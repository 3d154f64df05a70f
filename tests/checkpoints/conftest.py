"""Checkpoints that tests only read."""

from __future__ import annotations

import pytest

from tests.checkpoint_writer import Release, write_infinity


@pytest.fixture(scope="session")
def infinity_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_infinity(tmp_path_factory.mktemp("infinity"))
