"""A tiny T5 that all tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepvar.text import T5Encoder
from tests.text.tiny import save_tokenizer, tiny_t5


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    tiny_t5().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def t5(t5_folder: Path) -> T5Encoder:
    """In float32; tests only read it."""
    return T5Encoder(t5_folder, dtype=torch.float32)
