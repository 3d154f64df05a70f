"""The files of a T5 encoder: where they come from, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.errors import CheckpointError, UsageError
from stepvar.text import T5Encoder
from tests.text.tiny import save_tokenizer

PROMPT = ["a red circle on sand"]


@pytest.fixture
def folder(t5_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(t5_folder, tmp_path / "t5"))


def without_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return weights


def test_pytorch_files_give_the_same(folder: Path, t5: T5Encoder) -> None:
    torch.save(without_safetensors(folder), folder / "pytorch_model.bin")
    encoder = T5Encoder(folder, dtype=torch.float32)
    assert torch.equal(encoder.encode(PROMPT).features, t5.encode(PROMPT).features)


def test_sharded_files_give_the_same(folder: Path, t5: T5Encoder) -> None:
    weights = without_safetensors(folder)
    places = {name: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, name in enumerate(weights)}
    for place in set(places.values()):
        part = {name: weights[name] for name in weights if places[name] == place}
        save_file(part, folder / place, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    encoder = T5Encoder(folder, dtype=torch.float32)
    assert torch.equal(encoder.encode(PROMPT).features, t5.encode(PROMPT).features)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_weights_are_never_unpickled(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    weights = without_safetensors(folder)
    torch.save({**weights, "payload": Payload(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        T5Encoder(folder)
    assert not trace.exists()


def test_safetensors_win_over_pytorch_files(folder: Path, tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "trace"), folder / "pytorch_model.bin")
    T5Encoder(folder)
    assert not (tmp_path / "trace").exists()


def test_a_folder_without_weights(folder: Path) -> None:
    without_safetensors(folder)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors or pytorch_model\.bin"):
        T5Encoder(folder)


def test_missing_weights_are_not_random_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = "encoder.block.1.layer.0.SelfAttention.q.weight"
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 missing: {lost}"):
        T5Encoder(folder)


def rename_embedding(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights = {(name if key == "shared.weight" else key): weight for key, weight in weights.items()}
    assert name in weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_embedding_under_its_other_name(folder: Path, t5: T5Encoder) -> None:
    rename_embedding(folder, "encoder.embed_tokens.weight")
    encoder = T5Encoder(folder, dtype=torch.float32)
    assert torch.equal(encoder.encode(PROMPT).features, t5.encode(PROMPT).features)


@pytest.mark.parametrize("name", ["decoder.embed_tokens.weight", "lm_head.weight"])
def test_no_embedding_in_place_of_the_encoder_s(folder: Path, name: str) -> None:
    rename_embedding(folder, name)
    with pytest.raises(CheckpointError, match=r"missing: .*(shared|embed_tokens)\.weight"):
        T5Encoder(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        T5Encoder(folder)


def test_a_tokenizer_without_end_mark(folder: Path) -> None:
    save_tokenizer(folder, end_mark=False)
    with pytest.raises(CheckpointError, match="does not close prompts"):
        T5Encoder(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        T5Encoder(folder)


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
        T5Encoder(folder)


def test_without_the_extra(t5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for source in (str(t5_folder), "google/flan-t5-xl"):
        with pytest.raises(UsageError, match=r"pip install '\.\[text\]'"):
            T5Encoder(source)


def test_a_name_on_the_hub(t5_folder: Path, t5: T5Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(t5_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    encoder = T5Encoder(revision="abc", dtype=torch.float32)
    assert torch.equal(encoder.encode(PROMPT).features, t5.encode(PROMPT).features)
    [(name, revision, patterns)] = asked
    assert (name, revision) == ("google/flan-t5-xl", "abc")
    assert "model*.safetensors" in patterns
    assert not any(pattern.endswith(".bin") for pattern in patterns)


def test_pytorch_files_are_fetched_only_without_safetensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = without_safetensors(folder)
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            torch.save(weights, folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    T5Encoder("somebody/t5")
    assert len(asked) == 2


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UsageError, match=r"'somebody/t5': no local folder, and not from the hub: no network$"):
        T5Encoder("somebody/t5")


def test_a_local_folder_has_no_revision(t5_folder: Path) -> None:
    with pytest.raises(UsageError, match="leave it off"):
        T5Encoder(t5_folder, revision="main")


def test_importing_the_package_leaves_transformers_alone() -> None:
    code = "import sys, stepvar.text; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
