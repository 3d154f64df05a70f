"""A tiny Qwen2 with random weights as text encoder: fixed slots, padding, instruction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from stepvar.errors import CheckpointError, UsageError
from stepvar.text import CachedEncoder, ContextFeatures, LongPromptWarning, Qwen2Encoder
from tests.text.tiny import WORDS

PROMPTS = ("a red circle on sand", "a blue square")


def save_qwen2(folder: Path, side: str = "right", pad: str | None = "<pad>") -> Qwen2Model:
    torch.manual_seed(0)
    vocabulary = {"<pad>": 0, "<unk>": 1} | {word: 2 + index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", padding_side=side)
    if pad is not None:
        wrapped.pad_token = pad
    wrapped.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = Qwen2Model(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2")
    save_qwen2(folder)
    return folder


def encoder(folder: Path, instruction: str | None = None, slots: int = 8) -> Qwen2Encoder:
    return Qwen2Encoder(folder, instruction, slots=slots, dtype=torch.float32)


def test_every_prompt_takes_all_slots(folder: Path) -> None:
    text = encoder(folder).encode(PROMPTS)
    assert text.features.shape == (2, 8, 12) and text.features.dtype == torch.float32
    assert text.mask.sum(dim=1).tolist() == [5, 3]
    assert text.places.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4], [0, 1, 2, 2, 2, 2, 2, 2]]
    assert (text.features[1, 3:].norm(dim=-1) > 0).all()  # hidden states of padding are kept


@pytest.mark.parametrize("instruction", ["", "a circle on a square"])
def test_hidden_states_are_the_models_own(folder: Path, instruction: str) -> None:
    text = encoder(folder, instruction).encode(PROMPTS)
    model = Qwen2Model.from_pretrained(folder).eval()
    words = {word: 2 + index for index, word in enumerate(WORDS)}
    for row, prompt in enumerate(PROMPTS):
        front = [words[word] for word in instruction.split()]
        own = [words[word] for word in prompt.split()]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([front + own])).last_hidden_state[0, len(front) :]
        torch.testing.assert_close(text.features[row, : len(own)], hidden, atol=1e-5, rtol=0)


def test_the_instruction_may_lie_in_the_folder(tmp_path: Path) -> None:
    save_qwen2(tmp_path)
    plain = encoder(tmp_path).encode(PROMPTS).features
    (tmp_path / "instruction.txt").write_text("a circle on a square", encoding="utf-8")
    read = encoder(tmp_path)
    assert read.instruction == "a circle on a square"
    assert torch.equal(
        read.encode(PROMPTS).features, encoder(tmp_path, "a circle on a square").encode(PROMPTS).features
    )
    assert not torch.allclose(read.encode(PROMPTS).features, plain)
    assert torch.equal(encoder(tmp_path, "").encode(PROMPTS).features, plain)  # none on purpose
    (tmp_path / "instruction.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CheckpointError, match=r"instruction\.txt"):
        encoder(tmp_path)


def test_padding_in_front(tmp_path: Path) -> None:
    save_qwen2(tmp_path, side="left")
    text = encoder(tmp_path, slots=5).encode(["red circle"])
    assert text.mask.tolist() == [[False, False, False, True, True]]
    assert text.places.tolist() == [[-1, -1, -1, 0, 1]]


def test_long_prompts_lose_their_end_with_a_warning(folder: Path) -> None:
    short = encoder(folder, slots=3)
    with pytest.warns(LongPromptWarning, match="prompt of 5 tokens: the model reads 3"):
        text = short.encode(["a red circle on sand"])
    assert text.mask.all() and torch.equal(text.features, short.encode(["a red circle"]).features)


def test_cache_and_offload(folder: Path) -> None:
    plain = encoder(folder)
    cached: CachedEncoder[ContextFeatures] = CachedEncoder(encoder(folder).enable_offload("cpu"))
    expected = plain.encode(PROMPTS)
    for _ in range(2):
        text = cached.encode([*PROMPTS, PROMPTS[0]])
        assert torch.equal(text.features[:2], expected.features) and torch.equal(text.features[2], text.features[0])
        assert torch.equal(text.places[:2], expected.places) and torch.equal(text.mask[:2], expected.mask)
    assert len(cached) == 2


def test_moves_and_precision(folder: Path) -> None:
    low = encoder(folder).to(dtype=torch.bfloat16)
    text, exact = low.encode(PROMPTS), encoder(folder).encode(PROMPTS)
    assert text.features.dtype == torch.float32
    assert 0 < (text.features - exact.features).abs().max() < 0.1
    low.free()
    with pytest.raises(UsageError, match="were freed"):
        low.encode(PROMPTS)


def test_what_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="slots=0"):
        encoder(folder, slots=0)
    with pytest.raises(UsageError, match="none given"):
        encoder(folder).encode([])
    with pytest.raises(UsageError, match="float64"):
        Qwen2Encoder(folder, dtype=torch.float64)
    save_qwen2(tmp_path / "no-pad", pad=None)
    with pytest.raises(CheckpointError, match="no padding token"):
        encoder(tmp_path / "no-pad")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        encoder(tmp_path / "empty")
    save_qwen2(tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="give the folder of a Qwen2 model"):
        encoder(tmp_path / "weightless")
