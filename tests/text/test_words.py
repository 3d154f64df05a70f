"""What the encoder of a fixed vocabulary says of words that are not in it."""

from __future__ import annotations

import re

import pytest

from stepvar.errors import UsageError
from stepvar.text import CachedEncoder, UnknownWordWarning, WordEncoder, example_prompt
from training.captions import SYNONYMS, VOCABULARY
from training.wardrobe import captions as wardrobe

SCENES = WordEncoder(VOCABULARY, SYNONYMS, 8, heads=1, hidden=8)
CLOTHING = WordEncoder(wardrobe.vocabulary(), wardrobe.SYNONYMS, 8, heads=1, hidden=8)


@pytest.mark.parametrize("encoder", [SCENES, CLOTHING, WordEncoder(["a", "cat"], {}, 8, heads=1, hidden=8)])
def test_what_is_said_of_unknown_words_is_true_of_every_vocabulary(encoder: WordEncoder) -> None:
    assert encoder.remark(example_prompt(encoder)) == "" and example_prompt(CachedEncoder(encoder)) == encoder.example
    with pytest.warns(UnknownWordWarning, match="only the words of its vocabulary and ignores zebra$"):
        encoder.tokens("a zebra")
    words = re.escape(encoder.example.replace(" ", ", "))
    with pytest.raises(UsageError, match=f"^prompt 'zebra': this model knows none of its words; .* such as {words}$"):
        encoder.check("zebra")
