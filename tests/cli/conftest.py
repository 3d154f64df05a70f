"""A model folder with random weights, small enough to draw in a blink."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepvar.checkpoints import save_model
from stepvar.models.infinity import Infinity, InfinityConfig, TokenizerConfig
from stepvar.scenes.grammar import SYNONYMS, VOCABULARY
from stepvar.text import WordEncoder

PROMPT = "a large red circle on grass"
DEFAULTS = {"guidance_scale": 2.0, "temperature": 0.8, "top_k": 0, "top_p": 0.97}


def write_model(folder: Path) -> Path:
    """Saves a random model that draws 32x32 pixels in 7 scales."""
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(code_bits=8, base_channels=8, multipliers=(1, 2), norm_groups=4)
    config = InfinityConfig(4, 64, 4, 2, tokenizer, text_channels=128, text_maxlen=32, resolution="0.06M")
    text = {"vocabulary": list(VOCABULARY), "synonyms": SYNONYMS, "width": 128, "layers": 1, "hidden": 64}
    model, encoder = Infinity(config), WordEncoder(**text)
    with torch.no_grad():
        for weight in model.transformer.parameters():  # zero-initialised parts would hide what pruning changes
            weight.add_(0.05 * torch.randn_like(weight))
    save_model(folder, "tiny", model, encoder, text, DEFAULTS)
    return folder


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that tests only read."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model folder of one's own, to damage."""
    return write_model(tmp_path / "model")
