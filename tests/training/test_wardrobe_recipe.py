"""The recipe of "wardrobe" on its tiny preset: it runs through, goes on, and what it writes is a model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepvar import Pipeline
from stepvar.core.stack import run_dense
from stepvar.core.tokens import Grid, TokenMap
from stepvar.models.infinity import TokenizerConfig, schedule_for
from stepvar.models.infinity.tokenizer import BitTokenizer
from stepvar.models.infinity.transformer import BlockContext, TextMemory
from stepvar.text import WordEncoder
from training.pyramid import pyramid
from training.wardrobe.captions import GARMENTS, PLURAL, Description, caption, vocabulary
from training.wardrobe.coder import Coder, balance_error, correlation_error, statistics
from training.wardrobe.lite0 import EARLY, Lite0
from training.wardrobe.losses import Discriminator, chroma_error, picture_error
from training.wardrobe.measure import KINDS, PATTERNS
from training.wardrobe.presets import PRESETS
from training.wardrobe.sequence import ROOM, Places, TextToBits, attend, drawn_wrongly, pad_words, run_block
from training.wardrobe.stage import Options, learning_rate
from training.wardrobe.tokenizer import TokenizerTrainer
from training.wardrobe.transformer import TransformerTrainer


def test_the_recipe_runs_through_goes_on_and_writes_a_model(options: Options) -> None:
    trainer = TokenizerTrainer(options)
    for fraction in (0.1, 0.2, 0.9, 0.95):
        trainer.stage.fraction = fraction
        trainer.step()
    assert trainer.sharpening
    trainer.save()
    again = TokenizerTrainer(options)
    assert again.sharpening and again.stage.progress.step == 4
    assert again.stage.progress.seen == 4 * options.preset.tokenizer_batch
    for own, stored in zip(trainer.coder.parameters(), again.coder.parameters(), strict=True):
        assert torch.equal(own, stored)
    again.export()

    second = TransformerTrainer(options)
    for fraction in (0.1, 0.6, 0.9):
        second.stage.fraction = fraction
        second.step()
    assert {"bits", "nats"} == set(second.check()["1.333"])
    second.save()
    assert TransformerTrainer(options).best_bits == second.best_bits < float("inf")
    second.export()
    pipeline = Pipeline.from_pretrained(options.out / "packed")
    drawn = pipeline("a red dress on a white ground", seed=0, aspect_ratio="3:4", output_type="pt").images
    assert tuple(drawn[0].shape) == (3, *options.preset.size(1.333))

    third = TransformerTrainer(replace(options, out=options.out / "third", init=options.out))
    before = [parameter.clone() for parameter in third.model.parameters()]
    third.rng = random.Random(1)
    for _ in range(4):  # with bits that the model draws, and with flipped ones
        third.step()
    assert all(parameter.isfinite().all() for parameter in third.model.parameters())
    assert not all(map(torch.equal, before, third.model.parameters()))


def test_wrong_bits_lie_where_the_model_is_unsure() -> None:
    torch.manual_seed(0)
    targets = [torch.rand(2, 8, size, size) < 0.5 for size in (2, 16)]
    flat = torch.cat([target.flatten(2).transpose(1, 2) for target in targets], dim=1)
    margins = torch.where(flat, 50.0, -50.0)  # sure, and right
    margins[:, :, 4:] = 0.0
    logits = torch.stack((torch.zeros_like(margins), margins), dim=-1)
    ones = torch.ones(2)
    wrong = drawn_wrongly(logits, targets, ones, ones)
    assert [part.shape for part in wrong] == [target.shape for target in targets]
    assert not any(part[:, :4].any() for part in wrong)
    assert wrong[1][:, 4:].float().mean().item() == pytest.approx(0.5, abs=0.05)
    half = drawn_wrongly(logits, targets, torch.tensor([0.5, 0.0]), ones)
    assert half[1][0, 4:].float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert not half[1][1].any()
    # The true bits of later scales are those that mend what went wrong before.
    coder = BitTokenizer(TokenizerConfig(code_bits=8, base_channels=8, multipliers=(1, 2, 2), norm_groups=4))
    schedule = schedule_for("0.06M", 1.0)
    latent = torch.randn(2, 8, *schedule.grids[-1].shape[1:])
    none = [torch.zeros(2, 8, grid.h, grid.w, dtype=torch.bool) for grid in schedule]
    first = [torch.ones_like(none[0]), *none[1:]]
    right, mended = pyramid(coder, latent, schedule, wrong=none), pyramid(coder, latent, schedule, wrong=first)
    assert torch.equal(right.targets[0], mended.targets[0])
    assert not torch.equal(right.targets[1], mended.targets[1])
    errors = [(built.sums[-1] - latent).square().mean().item() for built in (right, mended)]
    assert errors[1] < 2 * errors[0]


def test_a_run_starts_from_an_earlier_one(options: Options, tmp_path: Path) -> None:
    first = TokenizerTrainer(options)
    first.step()
    first.export()
    second = TokenizerTrainer(replace(options, out=tmp_path / "second", init=options.out))
    assert second.stage.progress.step == 0
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    stored, own = first.finished(), second.coder
    with torch.no_grad():
        wanted = stored.encode_latent(pictures)
        # Half precision in between, and a last layer that was folded.
        torch.testing.assert_close(own.latent(own.tokenizer.encoder(pictures)), wanted, atol=0.02, rtol=0.02)


def test_folding_keeps_the_latent_and_centres_it() -> None:
    torch.manual_seed(0)
    coder, pictures = Coder(PRESETS["tiny"]), torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        raw = coder.tokenizer.encoder(pictures)
        coder.follow(statistics(raw), 1.0)
        latent = coder.latent(raw)
        torch.testing.assert_close(coder.folded().encoder(pictures), latent, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(latent.var((0, 2, 3)).sqrt(), torch.full((8,), coder.spread), atol=1e-3, rtol=0)


def test_unfolding_a_folded_coder_changes_nothing() -> None:
    torch.manual_seed(0)
    coder, pictures = Coder(PRESETS["tiny"]), torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        coder.follow(statistics(coder.tokenizer.encoder(pictures)), 1.0)
        latent = coder.latent(coder.tokenizer.encoder(pictures))
        again = Coder(PRESETS["tiny"])
        again.tokenizer.load_state_dict(coder.folded().state_dict())
        again.unfold()
        torch.testing.assert_close(again.latent(again.tokenizer.encoder(pictures)), latent, atol=1e-3, rtol=1e-3)
    weights = [one.tokenizer.encoder.state_dict()["conv_out.conv.weight"] for one in (coder, again)]
    assert weights[1].std() == pytest.approx(float(weights[0].std()), rel=0.2), "as large as a fresh layer"


def test_leaning_bits_and_twin_channels_cost() -> None:
    torch.manual_seed(0)
    coder, schedule = Coder(PRESETS["tiny"]), PRESETS["tiny"].schedule(1.0)
    latent = 0.5 * torch.randn(4, 8, 16, 16)
    even = balance_error(latent, pyramid(coder.tokenizer, latent, schedule), schedule)
    leaning = latent + 5.0  # more than ten codes can take away
    assert balance_error(leaning, pyramid(coder.tokenizer, leaning, schedule), schedule) > 0.9 > 0.1 > even
    twins = latent[:, :1].expand(-1, 8, -1, -1)
    assert correlation_error(twins) > 0.8 > 0.05 > correlation_error(latent)


def test_errors_of_equal_pictures_are_zero_and_hue_counts() -> None:
    torch.manual_seed(0)
    network, picture = Lite0(EARLY).eval(), torch.rand(1, 3, 32, 32) * 2 - 1
    assert float(picture_error(network, picture, picture)[0].detach()) == 0.0
    brighter, redder = picture + 0.1, picture + torch.tensor([0.1, 0.0, 0.0]).view(3, 1, 1)
    assert float(chroma_error(brighter, picture)) == pytest.approx(0.0, abs=1e-6)
    assert float(chroma_error(redder, picture)) > 0.1


def test_the_discriminator_learns_what_is_plain() -> None:
    torch.manual_seed(0)
    critic = Discriminator(8)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-3)
    for _ in range(40):
        real, made = torch.rand(4, 3, 32, 32), torch.zeros(4, 3, 32, 32)
        optimiser.zero_grad()
        loss = critic.loss(real, made)
        loss.backward()
        optimiser.step()
    assert critic(real).mean() > critic(made).mean()


def test_a_block_in_plain_tensors_is_the_librarys_block() -> None:
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    model = TextToBits(preset).eval()
    schedule = preset.schedule(1.333)
    places = Places.of(schedule, 3, preset.model.head_dim, torch.device("cpu"))
    words, lengths = pad_words(model.text, ["a red hat", "blue pants on a white ground"])
    condition = model.condition(words, lengths, torch.tensor([False, True]))
    x, block = torch.randn(2, places.ends[-1], preset.model.width), model.transformer.blocks[0]
    memory = condition.memory[0]
    assert isinstance(memory, TextMemory) and memory.mask is not None
    reach = (places.ends, places.merged, places.mask)
    context = BlockContext(
        modulation=condition.modulation[0],
        text=memory,
        rotary=lambda _: (places.cos, places.sin),
        attend=lambda _, q, k, v, projection: attend(q, k, v, *reach),
        hook=run_dense,
    )
    wanted = block(TokenMap(x, x, Grid(1, 1, 1)), 0, context).features
    text = (memory.keys, memory.values, memory.mask)
    found = run_block(block, x, condition.modulation[0], text, (places.cos, places.sin), reach, 0.0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_attention_by_scale_is_masked_attention() -> None:
    torch.manual_seed(0)
    schedule = PRESETS["wardrobe"].schedule(1.0)
    places = Places.of(schedule, 8, 8, torch.device("cpu"))
    assert places.merged == 6
    q, k, v = torch.randn(3, 1, 2, places.ends[-1], 8).unbind(0)
    whole = places.levels[:, None] >= places.levels[None]
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=whole, scale=1.0)
    found = attend(q, k, v, places.ends, places.merged, places.mask)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_every_caption_can_be_read() -> None:
    text = WordEncoder(**PRESETS["tiny"].text)
    items = [
        Description(label, True, "beige", "turquoise", pattern, "turquoise", kind)
        for label in GARMENTS
        for pattern in PATTERNS
        for kind in KINDS
    ]
    captions = [caption(item, random.Random(n)) for n, item in enumerate(items)] + [caption(item) for item in items]
    words, lengths = pad_words(text, captions)
    assert words.shape == (len(captions), ROOM) and max(lengths) < ROOM
    assert all(plural.split()[0] in vocabulary() for plural in PLURAL)


def test_the_learning_rate_rises_by_steps_and_falls_by_time() -> None:
    assert learning_rate(0.0, 0, 1.0) < 0.01
    assert learning_rate(0.0, 10_000, 1.0) == 1.0
    assert learning_rate(1.0, 10_000, 1.0) == pytest.approx(0.02)
