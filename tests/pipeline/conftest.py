"""Tiny pipelines, one per kind of input, for the tests of what users do with a pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stepvar import Pipeline
from stepvar.checkpoints import save_model
from stepvar.models.var import VAR
from tests.checkpoint_writer import write_infinity, write_star

load: Any = Pipeline.from_pretrained  # words that it does not declare are what is tested
TEXT = torch.linspace(-1, 1, 5 * 128).view(5, 128)


@pytest.fixture(scope="module")
def pipe(tiny_var: VAR, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("classes")
    save_model(folder, "tiny-var", tiny_var, None, None, {"guidance_scale": 1.5}, torch.float32)
    return load(folder)


@pytest.fixture(scope="module")
def text_pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_infinity(tmp_path_factory.mktemp("text")).folder, text_encoder=None)


@pytest.fixture(scope="module")
def star_pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_star(tmp_path_factory.mktemp("star")).folder, text_encoder=None)


def image(pipe: Pipeline, **given: Any) -> np.ndarray:
    arguments: dict[str, Any] = {"class_labels": 3, "seed": 1, "output_type": "np"} | given
    found: np.ndarray = pipe(**arguments).images
    return found
