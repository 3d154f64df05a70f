"""A model folder with random weights, small enough to generate in a blink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from stepvar.checkpoints import save_model
from stepvar.cli import main
from stepvar.models.infinity import Infinity, InfinityConfig, TokenizerConfig
from stepvar.text import WordEncoder
from training.captions import SYNONYMS, VOCABULARY

DEFAULTS = {"guidance_scale": 2.0, "temperature": 0.8, "top_k": 0, "top_p": 0.97}


def write_model(folder: Path) -> Path:
    """Saves a random model that generates 32x32 pixels in 7 scales."""
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(code_bits=8, base_channels=8, multipliers=(1, 2), norm_groups=4)
    config = InfinityConfig(4, 64, 4, 2, tokenizer, text_channels=128, text_maxlen=32, resolution="0.06M")
    text: dict[str, Any] = {
        "vocabulary": list(VOCABULARY),
        "synonyms": SYNONYMS,
        "width": 128,
        "layers": 1,
        "hidden": 64,
    }
    model, encoder = Infinity(config), WordEncoder(**text)
    with torch.no_grad():
        for name, weight in model.transformer.named_parameters():
            if name.endswith(("mat_q", "cfg_uncond", "pos_start")):  # made without values
                weight.zero_()
            weight.add_(0.1 * torch.randn_like(weight))  # parts that start at zero would hide what pruning changes
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


class Result(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str

    def error(self) -> str:
        """The one line that a failed command prints."""
        assert self.out == ""
        assert self.err.startswith("stepvar: error: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("stepvar: error: ").rstrip()


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line inside ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def generate(run: Run, shared_model: Path) -> Run:
    """Runs ``stepvar generate`` with the model that tests only read."""
    return lambda *arguments: run("generate", "--model", shared_model, *arguments)
