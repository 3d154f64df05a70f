"""The video recipe on the tiny preset: a stage goes on where it was, and what it exports is a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepvar.checkpoints import load_model, save_weights
from stepvar.models.infinity_star.tokenizer import VideoTokenizer
from training.video.presets import PRESETS
from training.video.recipe import collect
from training.video.stage import Options
from training.video.transformer import Trainer


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """A tokenizer with random weights, and batches of next to nothing."""
    torch.manual_seed(0)
    preset = replace(PRESETS["tiny"], batch=2, rendered=2, pool=4, refresh=100)
    save_weights(tmp_path / "tokenizer.safetensors", VideoTokenizer(preset.model.tokenizer).state_dict(), torch.float32)
    return Options(preset, tmp_path, minutes=60.0, device=torch.device("cpu"))


def test_training_goes_on_and_exports_a_model(options: Options, tmp_path: Path) -> None:
    trainer = Trainer(options)
    for _ in range(3):
        trainer.step()
    trainer.stage.save()
    trainer.export()
    again = Trainer(options)
    assert again.stage.progress.step == 3 and again.stage.progress.seen == 6
    for own, stored in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(own, stored)
    assert again.stage.optimiser.state_dict()["state"]

    missing = collect(tmp_path, tmp_path / "package")
    assert "judge.json" in missing and "model/transformer.safetensors" not in missing
    loaded = load_model(tmp_path / "package")
    assert loaded.name == "scenes-video" and loaded.model.config == options.preset.model
    mean = trainer.stage.averaged()
    stored = loaded.model.transformer.blocks[1].mlp.up_proj.weight
    wanted = mean.get_parameter("transformer.blocks.1.mlp.up_proj.weight")
    # In eight bits: half a step of a row's largest value over 127.
    assert (stored - wanted).abs().max() <= wanted.abs().max() / 250


def test_training_starts_from_a_finished_model(options: Options, tmp_path: Path) -> None:
    first = Trainer(options)
    first.export()
    other = tmp_path / "other"
    other.mkdir()
    second = Trainer(replace(options, out=other, init=tmp_path / "model", seed=5))
    assert second.stage.progress.step == 0
    for name in ("text.words.weight", "transformer.blocks.0.mlp.up_proj.weight"):
        a, b = (trainer.model.get_parameter(name) for trainer in (first, second))
        torch.testing.assert_close(a, b, atol=0.02, rtol=0)
    assert second.draws_itself
    before = [parameter.detach().clone() for parameter in second.model.parameters()]
    for _ in range(2):  # with bits that the model draws, and with flipped ones
        second.step()
    assert all(parameter.isfinite().all() for parameter in second.model.parameters())
    assert not all(map(torch.equal, before, second.model.parameters()))


def test_the_model_draws_wrong_bits_itself_once_it_knows_something(options: Options) -> None:
    trainer = Trainer(options)
    assert not trainer.draws_itself
    trainer.stage.fraction = 0.6
    drawing = []
    for trainer.stage.progress.step in range(6):
        drawing.append(trainer.draws_itself)
    assert drawing == 3 * [True, False]


def test_training_leaves_models_behind(options: Options, tmp_path: Path) -> None:
    Trainer(replace(options, minutes=0.03, keep_every=0.01)).run()
    kept = list(tmp_path.glob("model-0.*"))
    assert kept and all(load_model(folder).name == "scenes-video" for folder in (*kept, tmp_path / "model"))


def test_a_stage_ends_at_its_limit(options: Options) -> None:
    trainer = Trainer(replace(options, limit=0.0))
    assert not trainer.run()
    assert trainer.stage.progress.step == 0 and (options.out / "transformer.ckpt").exists()
