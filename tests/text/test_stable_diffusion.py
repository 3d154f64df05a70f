"""The CLIP text tower of a Stable Diffusion pipeline, tiny and with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from stepvar.errors import CheckpointError, UsageError
from stepvar.text import CachedEncoder, LongPromptWarning, StableDiffusionEncoder, check_source
from tests.text.tiny import WORDS

PROMPTS = ("a red circle on sand", "a blue square", "")
BEGIN, END, PAD = 18, 19, 0


def save_stable_diffusion(folder: Path, marks: bool = True) -> CLIPTextModel:
    """The folders ``text_encoder`` and ``tokenizer`` of a pipeline."""
    torch.manual_seed(0)
    vocabulary = {"!": PAD, "<unk>": 1, "<begin>": BEGIN, "<end>": END}
    vocabulary |= {word: 2 + index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<begin> $A <end>", special_tokens=[("<begin>", BEGIN), ("<end>", END)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<begin>", eos_token="<end>", pad_token="!"
    ).save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    model = CLIPTextModel(config).eval()
    model.save_pretrained(folder / "text_encoder")
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stable-diffusion")
    save_stable_diffusion(folder)
    return folder


def test_features_are_those_of_the_tower_between_the_marks(folder: Path) -> None:
    """As the published code has them: padded to the longest that is read, the padding masked and left out."""
    text = StableDiffusionEncoder(folder / "text_encoder", max_length=9).encode(PROMPTS)
    assert text.lengths == (7, 5, 2) and text.features.shape == (3, 7, 24) and text.features.dtype == torch.float32
    model = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    words = {word: 2 + index for index, word in enumerate(WORDS)}
    for row, prompt in enumerate(PROMPTS):
        tokens = [BEGIN, *(words[word] for word in prompt.split()), END]
        padded = torch.tensor([tokens + [PAD] * (9 - len(tokens))])
        with torch.no_grad():
            out = model(input_ids=padded, attention_mask=torch.arange(9)[None] < len(tokens))
        torch.testing.assert_close(text.features[row, : len(tokens)], out.last_hidden_state[0, : len(tokens)])
        torch.testing.assert_close(text.features[row, len(tokens) - 1], out.pooler_output[0])
        assert text.features[row, len(tokens) :].abs().sum() == 0


def test_the_tokenizer_may_lie_with_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "text_encoder", tmp_path / "one")
    for path in (folder / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "one")
    one, two = (StableDiffusionEncoder(place) for place in (tmp_path / "one", folder / "text_encoder"))
    assert torch.equal(one.encode(PROMPTS).features, two.encode(PROMPTS).features)


def test_the_end_of_a_long_prompt_is_left_out(folder: Path) -> None:
    encoder = StableDiffusionEncoder(folder / "text_encoder", max_length=6)
    with pytest.warns(LongPromptWarning, match="prompt of 7 tokens: the text encoder reads 6"):
        tokens = encoder.tokens(PROMPTS[0])
    assert len(tokens) == 6 and (tokens[0], tokens[-1]) == (BEGIN, END)


def test_behind_a_cache_and_offloaded(folder: Path) -> None:
    encoder = CachedEncoder(StableDiffusionEncoder(folder / "text_encoder"))
    encoder.encoder.enable_offload("cpu")  # type: ignore[attr-defined]
    assert torch.equal(encoder.encode(PROMPTS).features, encoder.encode(PROMPTS).features)


def test_a_folder_inside_a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.append((repo, options["allow_patterns"]))
        return str(folder)

    def download(repo: str, name: str, **_: Any) -> str:
        asked.append((repo, name))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    check_source("owner/name/text_encoder")
    assert StableDiffusionEncoder("owner/name/text_encoder").encode(PROMPTS).lengths == (7, 5, 2)
    assert asked[0] == ("owner/name", "text_encoder/config.json")
    repo, wanted = asked[1]
    patterns = {"text_encoder/model*.safetensors", "text_encoder/*.json", "tokenizer/*.json", "tokenizer/merges.txt"}
    assert repo == "owner/name" and patterns <= set(wanted)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_length=1: must be at least 2"):
        StableDiffusionEncoder(folder / "text_encoder", max_length=1)
    with pytest.raises(UsageError, match="prompts: none given"):
        StableDiffusionEncoder(folder / "text_encoder").encode([])
    save_stable_diffusion(tmp_path, marks=False)
    with pytest.raises(CheckpointError, match="does not put CLIP's marks around prompts"):
        StableDiffusionEncoder(tmp_path / "text_encoder")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        StableDiffusionEncoder(tmp_path / "text_encoder")
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match="not a whole CLIP text tower"):
        StableDiffusionEncoder(tmp_path / "text_encoder")
