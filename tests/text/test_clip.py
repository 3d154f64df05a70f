"""Two tiny CLIP models with random weights as text encoder: towers side by side, the pooled vector, long prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, PreTrainedTokenizerFast

from stepvar.errors import CheckpointError, UsageError
from stepvar.text import CachedEncoder, CLIPEncoder, LongPromptWarning, PooledFeatures, check_source
from tests.text.tiny import WORDS

PROMPTS = ("a red circle on sand", "a blue square", "")
BEGIN, END = 11, 12


def save_clip(folder: Path, width: int, pad: str) -> None:
    """A whole CLIP model, of which the encoder takes the text tower, and a tokenizer that puts marks around prompts."""
    torch.manual_seed(width)
    vocabulary = {"!": 0, "<unk>": 1} | {word: 2 + index for index, word in enumerate(WORDS)}
    vocabulary |= {"<|startoftext|>": BEGIN, "<|endoftext|>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", END), ("<|startoftext|>", BEGIN))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token=pad, padding_side="right"
    ).save_pretrained(folder)
    text = {
        "vocab_size": 13,
        "hidden_size": width,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
    }
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 8, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)


def save_towers(folder: Path) -> str:
    """Both models; the first pads with its end mark, the second with a word of its own, as the public ones do."""
    save_clip(folder / "first", 8, "<|endoftext|>")
    save_clip(folder / "second", 16, "!")
    return f"{folder / 'first'}, {folder / 'second'}"


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_towers(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(towers: str) -> CLIPEncoder:
    return CLIPEncoder(towers, dtype=torch.float32)


def test_features_are_those_of_both_towers_with_all_padding(encoder: CLIPEncoder, towers: str) -> None:
    encoded = encoder.encode(PROMPTS)
    assert encoded.text.lengths == (7, 5, 2) and (encoder.channels, encoder.pooled_channels) == (24, 16)
    assert encoded.text.features.shape == (3, 7, 24) and encoded.text.features.dtype == torch.float32
    hidden = []
    for folder, tokenizer in zip(towers.split(", "), encoder.tokenizers, strict=True):
        filled = tokenizer(list(PROMPTS), padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            out = CLIPTextModel.from_pretrained(folder).eval()(filled["input_ids"], filled["attention_mask"])
        hidden.append(out.last_hidden_state)
    whole = torch.cat(hidden, dim=-1)
    for row, length in enumerate(encoded.text.lengths):
        torch.testing.assert_close(encoded.text.features[row, :length], whole[row, :length], atol=1e-5, rtol=0)
        assert not encoded.text.features[row, length:].any()
    torch.testing.assert_close(encoded.pooled, out.pooler_output, atol=1e-5, rtol=0)


def test_a_prompt_is_the_same_alone_in_a_batch_and_from_the_cache(encoder: CLIPEncoder) -> None:
    together, cached = encoder.encode(PROMPTS), CachedEncoder[PooledFeatures](encoder)
    for number, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        torch.testing.assert_close(alone.pooled[0], together.pooled[number], atol=1e-6, rtol=0)
        torch.testing.assert_close(alone.text.rows()[0], together.text.rows()[number], atol=1e-6, rtol=0)
    cached.encode(PROMPTS[:2])
    again = cached.encode([PROMPTS[1], PROMPTS[2]])
    torch.testing.assert_close(again.pooled, together.pooled[1:], atol=1e-6, rtol=0)
    assert again.text.lengths == (5, 2) and len(cached) == 3


def test_long_prompts_lose_their_end_with_a_warning(encoder: CLIPEncoder) -> None:
    with pytest.warns(LongPromptWarning, match="prompt of 82 tokens: the model reads 77 and ignores the end"):
        encoded = encoder.encode([" ".join(["red"] * 80)])
    assert encoded.text.lengths == (77,)


def test_offload_quantisation_and_precision(towers: str, encoder: CLIPEncoder) -> None:
    exact = encoder.encode(PROMPTS)
    offloaded = CLIPEncoder(towers, dtype=torch.float32).enable_offload("cpu").encode(PROMPTS)
    assert torch.equal(offloaded.pooled, exact.pooled) and torch.equal(offloaded.text.features, exact.text.features)
    small = CLIPEncoder(towers).quantize()
    rounded = small.encode(PROMPTS)
    assert rounded.pooled.dtype == torch.float32 and 0 < (rounded.pooled - exact.pooled).abs().max() < 0.2
    small.free()
    with pytest.raises(UsageError, match="were freed"):
        small.encode(PROMPTS)


def test_what_cannot_be_used(towers: str, encoder: CLIPEncoder, tmp_path: Path) -> None:
    first, second = towers.split(", ")
    with pytest.raises(UsageError, match="give two CLIP models with a comma between them"):
        CLIPEncoder(first)
    with pytest.raises(UsageError, match="none given"):
        encoder.encode([])
    check_source(towers)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: no model\.safetensors"):
        check_source(f"{first},{tmp_path / 'empty'}")
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        CLIPEncoder(f"{tmp_path / 'empty'},{second}")


def test_pooled_features_from_elsewhere() -> None:
    given = PooledFeatures.of([torch.ones(3, 4), torch.ones(5, 4)], torch.ones(2, 6))
    assert given.text.lengths == (3, 5) and len(given.repeat(2)) == 4
    assert PooledFeatures.of(torch.ones(3, 4), torch.ones(6)).pooled.shape == (1, 6)
    for pooled, message in (
        (torch.ones(2, 6), r"pooled embeddings of shape \(2, 6\): must be \(1, 6\)"),
        (torch.ones(1, 5), r"must be \(1, 6\)"),
        (torch.ones(1, 6, dtype=torch.int64), "floating point"),
        (torch.full((1, 6), torch.nan), "hold NaN"),
    ):
        with pytest.raises(UsageError, match=message):
            PooledFeatures.of(torch.ones(3, 4), pooled, pooled_channels=6)
