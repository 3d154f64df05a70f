"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from tests.helpers import make_model, make_var

# Examples that repeat, and no limit on the time of one: a busy machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more: threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model() -> Infinity:
    """A model with random weights that tests only read."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_var() -> VAR:
    """A class-conditional model with random weights that tests only read."""
    return make_var()
