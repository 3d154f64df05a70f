"""A decoder trained alone: the encoder, and with it all codes, stay to the bit what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepvar.checkpoints import read_state, save_weights
from stepvar.errors import UsageError
from training.wardrobe import tokenizer as tokenizer_stage
from training.wardrobe.decoder import DecoderTrainer
from training.wardrobe.losses import picture_error
from training.wardrobe.stage import Options
from training.wardrobe.tokenizer import TokenizerTrainer, read_tokenizer


@pytest.fixture
def behind(options: Options) -> Options:
    """Options that go on from a tokenizer trained for a step."""
    first = TokenizerTrainer(options)
    first.step()
    first.export()
    out = options.out / "decoder"
    out.mkdir()
    return replace(options, out=out, init=options.out, pull=0.12)


def test_the_decoder_learns_and_the_encoder_stays(behind: Options) -> None:
    trainer = DecoderTrainer(behind)
    critic = [parameter.clone() for parameter in trainer.critic.parameters()]
    for fraction in (0.05, 0.5):
        trainer.stage.fraction = fraction
        trainer.step()
    assert not all(map(torch.equal, critic, trainer.critic.parameters())), "it learns from the first step"
    trainer.save()
    again = DecoderTrainer(behind)
    assert again.stage.progress.step == 2
    again.step()
    again.export()
    assert behind.init is not None
    given, written = (load_file(folder / "tokenizer.safetensors") for folder in (behind.init, behind.out))
    assert given.keys() == written.keys()
    for name, tensor in given.items():
        assert tensor.dtype == written[name].dtype
        assert torch.equal(tensor, written[name]) or name.startswith("decoder."), name
    assert not torch.equal(given["decoder.conv_in.conv.weight"], written["decoder.conv_in.conv.weight"])
    pictures, schedule = torch.rand(1, 3, 64, 64) * 2 - 1, behind.preset.schedule(1.0)
    before, after = (read_tokenizer(behind, path / "tokenizer.safetensors") for path in (behind.init, behind.out))
    codes = [tokenizer.encode(pictures, schedule)[1] for tokenizer in (before, after)]
    assert torch.equal(*codes)


def test_only_the_decoder_is_optimised(behind: Options) -> None:
    trainer = DecoderTrainer(behind)
    held = {id(p) for group in trainer.stage.optimiser.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.coder.tokenizer.decoder.parameters()}
    assert not any(p.requires_grad for p in trainer.coder.tokenizer.encoder.parameters())


def test_few_bits_of_the_last_scales_are_wrong(behind: Options) -> None:
    trainer, schedule = DecoderTrainer(behind), behind.preset.schedule(1.0)
    last = schedule.grids[-1]
    latent = trainer.coder.spread * torch.randn(64, 8, last.h, last.w)
    true = trainer.coder.tokenizer.quantise(latent, schedule)[1]
    wrong = (trainer.sharp_codes(latent, schedule) != true).flatten(1).any(1)
    assert 0.05 < wrong.float().mean() < 0.4


def test_the_discriminator_comes_in_early_or_not_at_all(behind: Options) -> None:
    trainer = DecoderTrainer(behind)
    shares = []
    for fraction in (0.0, 0.05, 0.5):
        trainer.stage.fraction = fraction
        shares.append(trainer.pull_share())
    assert shares == pytest.approx([0.0, 0.06, 0.12])
    without = DecoderTrainer(replace(behind, pull=0.0))
    critic = [parameter.clone() for parameter in without.critic.parameters()]
    without.step()
    assert all(map(torch.equal, critic, without.critic.parameters()))


def test_other_formats_of_the_encoder_are_kept(behind: Options) -> None:
    assert behind.init is not None
    path: Path = behind.init / "tokenizer.safetensors"
    single = {name: tensor.float() + 1e-7 for name, tensor in read_state(path).items()}
    save_weights(path, single, None)
    trainer = DecoderTrainer(behind)
    trainer.step()
    trainer.export()
    written = load_file(behind.out / "tokenizer.safetensors")
    name = "encoder.conv_out.conv.weight"
    assert torch.equal(written[name], single[name]) and written[name].dtype == torch.float32


def test_without_a_tokenizer_there_is_nothing_to_go_on_from(options: Options) -> None:
    with pytest.raises(UsageError, match="--init"):
        DecoderTrainer(options)


def test_squared_errors_weigh_what_was_asked_for(behind: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def error(
        network: object, decoded: torch.Tensor, pictures: torch.Tensor, squares: float
    ) -> tuple[torch.Tensor, ...]:
        weights.append(squares)
        return picture_error(network, decoded, pictures, squares)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenizer_stage, "picture_error", error)
    for kind in (TokenizerTrainer, DecoderTrainer):
        for squares in (None, 7.0):
            kind(replace(behind, squares=squares)).step()
    assert weights == [3.0, 7.0, 30.0, 7.0]
