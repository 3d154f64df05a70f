"""More bits per token: the wider model begins where the narrower one is."""

from __future__ import annotations

from dataclasses import replace

import torch

from stepvar.models.infinity import TokenizerConfig, schedule_for
from stepvar.models.infinity.tokenizer import BitTokenizer
from training.wardrobe.presets import PRESETS
from training.wardrobe.sequence import Places, TextToBits, pad_words
from training.wardrobe.widening import widened_tokenizer, widened_transformer


def test_a_tokenizer_with_more_bits_begins_with_the_same_copies() -> None:
    torch.manual_seed(0)
    narrow = TokenizerConfig(code_bits=8, base_channels=8, multipliers=(1, 2, 2), norm_groups=4)
    old, new = BitTokenizer(narrow).eval(), BitTokenizer(replace(narrow, code_bits=12)).eval()
    new.load_state_dict(widened_tokenizer(old.state_dict(), new))
    pictures, schedule = torch.rand(2, 3, 64, 64) * 2 - 1, schedule_for("0.06M", 1.0)
    (bits, codes), (wide_bits, wide_codes) = (one.encode(pictures, schedule) for one in (old, new))
    assert all(torch.equal(wide[:, :8], few) for wide, few in zip(wide_bits, bits, strict=True))
    torch.testing.assert_close(new.decode(wide_codes), old.decode(codes), atol=1e-4, rtol=0)
    assert len({tuple(channel.flatten().tolist()) for channel in wide_bits[-1][0]}) == 12, "new bits say something"


def test_a_transformer_with_more_bits_begins_with_the_same_logits() -> None:
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    wide = replace(preset, model=replace(preset.model, tokenizer=replace(preset.model.tokenizer, code_bits=12)))
    old, new = TextToBits(preset).eval(), TextToBits(wide).eval()
    with torch.no_grad():  # fresh gates and heads are zero, and would hide what is wrong
        for weight in old.parameters():
            weight.normal_(0, 0.05)
    new.text.load_state_dict(old.text.state_dict())
    new.transformer.load_state_dict(widened_transformer(old.transformer.state_dict(), new.transformer))
    schedule = preset.schedule(1.0)
    places = Places.of(schedule, 4, preset.model.head_dim, torch.device("cpu"))
    tokens, more = torch.randn(2, places.ends[-1] - 1, 8), torch.randn(2, places.ends[-1] - 1, 4)
    words, lengths = pad_words(old.text, ["a red shirt", "a hat"])
    dropped = torch.tensor([False, True])
    with torch.no_grad():
        known = old(words, lengths, dropped, tokens, places)
        found = new(words, lengths, dropped, torch.cat([tokens * (8 / 12) ** 0.5, more], dim=2), places)
    torch.testing.assert_close(found[:, :, :8], known, atol=1e-5, rtol=1e-5)
    assert known.std() > 0.01 and found[:, :, 8:].abs().max() == 0
