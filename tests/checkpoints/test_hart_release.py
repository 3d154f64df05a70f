"""The folders of a HART release, from the hub or on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.checkpoints import convert_model, hub, load_model
from stepvar.errors import CheckpointError
from stepvar.models.hart import checkpoint
from stepvar.models.hart.checkpoint import TOP_K
from tests.checkpoint_writer import HART_LAYOUTS, HartLayout, Release, write_hart
from tests.checkpoints.test_layouts import assert_holds


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_hart(tmp_path_factory.mktemp("hart") / "release")


@pytest.mark.parametrize("layout", HART_LAYOUTS)
def test_layouts(tmp_path: Path, layout: HartLayout) -> None:
    release = write_hart(tmp_path / "release", layout=layout)
    for name in (release.folder, release.transformer):  # the folder of both, or the transformer's
        loaded = load_model(name)
        assert_holds(loaded, release)
        assert (loaded.family, loaded.name) == ("hart", "hart-0.7b")
        assert loaded.defaults["top_k"] == TOP_K and loaded.defaults["more_smooth"] is True


def test_from_the_hub(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(_: Any, repo: str, name: str, *__: Any) -> Path:
        asked.append((repo, name))
        return release.folder / name

    monkeypatch.setattr(hub, "_download", download)
    assert_holds(load_model("mit-han-lab/hart-0.7b-1024px"), release)
    assert asked == [(checkpoint.FAMILY.repos[0], "tokenizer"), (checkpoint.FAMILY.repos[0], "llm")]


def test_conversion(release: Release, tmp_path: Path) -> None:
    folder = convert_model(release.folder, tmp_path / "own")
    assert_holds(load_model(folder), release)
    assert not list(folder.glob("*ema*"))


def edited(release: Release, folder: Path, part: str, **entries: Any) -> Path:
    """A copy whose configuration of a part says something else."""
    write_hart(folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("llm", {"depth": 4}, r"does not fit the model; \d+ missing: blocks.3"),
        ("llm", {"embed_dim": 50}, "heads=2: width=50"),
        ("llm", {"use_cross_attn": True}, "use_cross_attn=True is not supported"),
        ("llm", {"depth": "many"}, "depth='many' must be int"),
        ("tokenizer", {"vocab_size": 64}, "misshapen"),
        ("tokenizer", {"quantizer_type": "fsq"}, "quantizer_type='fsq'"),
    ],
    ids=str,
)
def test_its_own_files_say_what_it_is(
    release: Release, tmp_path: Path, part: str, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(edited(release, tmp_path / "release", part, **entries))


def test_a_configuration_that_is_missing_or_damaged(tmp_path: Path) -> None:
    release = write_hart(tmp_path / "release")
    path = release.transformer / "config.json"
    for content in ("{", "[]"):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=r"llm.config\.json: (cannot be read|holds a list)"):
            load_model(release.folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"llm.config\.json: missing; it says what the model is"):
        load_model(release.folder)


def test_other_names_are_refused(tmp_path: Path) -> None:
    release = write_hart(tmp_path / "release", layout="safetensors")
    path = release.tokenizer / "model.safetensors"
    save_file(load_file(path) | {"vae.surprise": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected: vae\.surprise"):
        load_model(release.folder)
