"""What does not fit, is damaged or would run code is refused, with the file and the remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stepvar.checkpoints import fill_module, load_model, read_state
from stepvar.errors import CheckpointError
from tests.checkpoint_writer import INFINITY_LAYOUTS, Layout, Release, write_infinity, write_var

State = dict[str, Tensor]
Change = Callable[[State], Any]

CHANGES: list[tuple[Change, str]] = [
    (lambda state: state.pop("word_embed.weight"), "1 missing: word_embed.weight"),
    (lambda state: state.update({"head.more": torch.ones(1)}), "1 unexpected: head.more"),
    (lambda state: state.update({"head.bias": torch.ones(3)}), r"1 misshapen: head.bias \(3,\) instead of \("),
]


@pytest.mark.parametrize("family", ["infinity", "var"])
@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_other_names_and_shapes(tmp_path: Path, family: str, change: Change, said: str) -> None:
    release: Release = {"infinity": write_infinity, "var": write_var}[family](tmp_path)  # type: ignore[operator]
    state = torch.load(release.transformer)
    change(state)
    torch.save(state, release.transformer)
    with pytest.raises(CheckpointError, match=f"{release.transformer.name}: does not fit.*{said}"):
        load_model(tmp_path)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    release = write_infinity(tmp_path)
    torch.save({"x": torch.ones(1)}, release.transformer)
    with pytest.raises(CheckpointError, match=r"\d+ missing: .*, \.\.\.; 1 unexpected: x"):
        load_model(tmp_path)


@pytest.mark.parametrize("layout", INFINITY_LAYOUTS)
@pytest.mark.parametrize("keep", [0.5, 0.999, 0.0])
def test_truncated_files(tmp_path: Path, layout: Layout, keep: float) -> None:
    release = write_infinity(tmp_path, layout=layout)
    file = release.transformer
    if file.is_dir():
        file = next(path for path in sorted(file.iterdir()) if path.suffix != ".json")
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match=f"{file.name}: .*(damaged|truncated).*fetch it again"):
        load_model(release.transformer, variant="2b")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid", b"<!DOCTYPE html>", b"\x80"])
def test_files_of_another_kind(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    said = {b"v": "a pointer of Git LFS.*fetch it again", b"<": "a web page.*fetch", b"\x80": "damaged.*fetch it again"}
    with pytest.raises(CheckpointError, match=f"{path.name}: .*{said[content[:1]]}") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "was-run"
    torch.save({"a": torch.ones(1), "b": Attack(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"code from a file is never run.*save its state dict alone"):
        read_state(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(1)], "holds no weights"),
        ({}, "holds no weights"),
        ({"a": torch.ones(1), "epoch": 3}, r"holds more than weights \(epoch\)"),
        ({"a": torch.ones(1).to_sparse()}, r"holds more than weights \(a\)"),
        ({3: torch.ones(1)}, r"holds more than weights \(3\)"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        read_state(tmp_path / "x.pth")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone.pth: missing; check the path"):
        read_state(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="no index of shards"):
        read_state(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(CheckpointError, match="must end in"):
        read_state(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"weight_map": {"a": "x.safetensors.index.json"}}', "no shard"),
        ('{"weight_map": {"a": 3}}', "is no index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "no shard in the same folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone.safetensors: missing, though"),
    ],
)
def test_damaged_indices(tmp_path: Path, index: str, said: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=said):
        read_state(tmp_path)


def test_a_shard_without_what_the_index_places_there(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    index = {"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: lacks b"):
        read_state(tmp_path)


class Derived(nn.Module):
    """Keeps a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.ones(2), persistent=False)


def test_buffers_without_values_are_noticed() -> None:
    fill_module(Derived(), {"weight": torch.ones(2)}, "x")
    with torch.device("meta"):
        module = Derived()
    with pytest.raises(CheckpointError, match="no file holds the buffers table"):
        fill_module(module, {"weight": torch.ones(2)}, "x")


def test_filling_copies() -> None:
    weights = {"weight": torch.ones(2)}
    module = Derived()
    fill_module(module, weights | {"other": torch.ones(1)}, "x", ignorable=["oth*"])
    weights["weight"].zero_()
    assert torch.equal(module.weight, torch.ones(2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: (10 * weight).to(torch.int8), r"head\.weight holds torch\.int8; quantised"),
        (lambda weight: weight.to(torch.float8_e4m3fn), r"head\.weight holds torch\.float8_e4m3fn; quantised"),
        (lambda weight: torch.full_like(weight, torch.nan), r"head\.weight holds NaN or infinity"),
        (lambda weight: (1e8 * weight).half(), r"head\.weight holds NaN or infinity"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, change: Callable[[Tensor], Tensor], said: str) -> None:
    release = write_var(tmp_path)
    state = torch.load(release.transformer, weights_only=True)
    torch.save(state | {"head.weight": change(state["head.weight"])}, release.transformer)
    with pytest.raises(CheckpointError, match=said):
        load_model(release.folder)
