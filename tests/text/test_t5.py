"""T5 as text encoder, against ``transformers`` used the way the published code uses it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel

from stepvar.errors import UsageError
from stepvar.text import LongPromptWarning, T5Encoder, TextFeatures

PROMPTS = ("a red circle on sand", "a blue square", "on zigzag sand a red red circle")


def published(folder: Path, prompts: tuple[str, ...]) -> tuple[list[torch.Tensor], list[int]]:
    """Padded to 512 by the tokenizer, then cut to the length of the mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5EncoderModel.from_pretrained(folder, dtype=torch.float32)
    tokens = tokenizer(text=list(prompts), max_length=512, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    lengths = tokens.attention_mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(hidden, lengths, strict=True)], lengths


def test_as_published_with_padding_to_512(t5: T5Encoder, t5_folder: Path) -> None:
    rows, lengths = published(t5_folder, PROMPTS)
    ours = t5.encode(PROMPTS)
    assert ours.lengths == tuple(lengths)
    assert ours.features.shape == (3, max(lengths), 64)
    assert ours.features.dtype == torch.float32
    for own, other in zip(ours.rows(), rows, strict=True):
        torch.testing.assert_close(own, other, atol=2e-6, rtol=1e-5)


def test_batch_gives_what_single_prompts_give(t5: T5Encoder) -> None:
    together = t5.encode(PROMPTS)
    for row, prompt in zip(together.rows(), PROMPTS, strict=True):
        torch.testing.assert_close(row, t5.encode([prompt]).features[0], atol=2e-6, rtol=1e-5)


def test_nothing_behind_the_length(t5: T5Encoder) -> None:
    features = t5.encode(PROMPTS)
    for row, length in zip(features.features, features.lengths, strict=True):
        assert row[length:].count_nonzero() == 0
        assert row[:length].count_nonzero(dim=1).min() > 0


def test_the_end_mark_counts(t5: T5Encoder) -> None:
    assert t5.tokens("a red circle") == [4, 5, 6, 1]
    assert t5.encode(["a red circle"]).lengths == (4,)


def test_the_empty_prompt_is_an_end_mark(t5: T5Encoder, t5_folder: Path) -> None:
    empty = t5.encode([""])
    assert empty.lengths == (1,)
    torch.testing.assert_close(empty.features[0], published(t5_folder, ("",))[0][0], atol=2e-6, rtol=1e-5)
    assert TextFeatures.stack([t5.encode(PROMPTS[:1]), empty]).lengths == (6, 1)


def test_no_prompts(t5: T5Encoder) -> None:
    with pytest.raises(UsageError, match="none given"):
        t5.encode([])


@pytest.mark.parametrize(
    ("prompt", "ignored"),
    [
        ("a red circle on sand a blue square", "'square'"),
        ("a red circle on sand a  \n blue", None),
        ("a red circle on sand a blue", None),
        ("a red circle on zigzag sand", "'zigzag sand'"),  # cut inside a word: the word is named whole
        ("a red circle on sand a" + 30 * " blue", "blue' and 9 more"),
    ],
)
def test_a_long_prompt_is_not_cut_in_silence(t5_folder: Path, prompt: str, ignored: str | None) -> None:
    encoder = T5Encoder(t5_folder, dtype=torch.float32, max_length=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokens = encoder.tokens(prompt)
    assert len(tokens) == 8
    assert tokens[-1] == 1
    messages = [str(warning.message) for warning in caught if warning.category is LongPromptWarning]
    if ignored is None:
        assert not caught
    else:
        assert len(messages) == 1
        assert messages[0].endswith(ignored)
        assert "\n" not in messages[0]


def test_truncated_as_published(t5: T5Encoder, t5_folder: Path) -> None:
    prompt = "a red circle on sand " * 120
    rows, lengths = published(t5_folder, (prompt,))
    with pytest.warns(LongPromptWarning, match="prompt of 601 tokens: the text encoder reads 512"):
        ours = t5.encode([prompt])
    assert ours.lengths == tuple(lengths) == (512,)
    torch.testing.assert_close(ours.features[0], rows[0], atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(t5: T5Encoder, t5_folder: Path, dtype: torch.dtype) -> None:
    encoder = T5Encoder(t5_folder, dtype=dtype)
    features = encoder.encode(PROMPTS).features
    assert encoder.dtype == dtype
    assert features.dtype == torch.float32
    exact = t5.encode(PROMPTS).features
    assert not torch.equal(features, exact)
    torch.testing.assert_close(features, exact, atol=0.1, rtol=0.1)


def test_bfloat16_is_the_default(t5_folder: Path) -> None:
    assert T5Encoder(t5_folder).dtype == torch.bfloat16


def test_casting_gives_what_loading_gives(t5_folder: Path) -> None:
    # In float16 one layer of each feed-forward part stays in float32, whichever way the weights came there.
    loaded = T5Encoder(t5_folder, dtype=torch.float16)
    cast = T5Encoder(t5_folder, dtype=torch.float32).to(dtype=torch.float16)
    torch.testing.assert_close(cast.encode(PROMPTS).features, loaded.encode(PROMPTS).features, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_other_dtypes_are_refused(t5_folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match="must be one of"):
        T5Encoder(t5_folder, dtype=dtype)


def test_length_limit_is_checked(t5_folder: Path) -> None:
    with pytest.raises(UsageError, match="max_length=1"):
        T5Encoder(t5_folder, max_length=1)


def test_freed(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder)
    features = encoder.encode(PROMPTS)
    encoder.free()
    assert encoder.to("cpu", torch.float32) is encoder  # as part of a pipeline that moves
    assert encoder.channels == 64
    assert features.features.isfinite().all()
    with pytest.raises(UsageError, match="freed"):
        encoder.encode(PROMPTS)
