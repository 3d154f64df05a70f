"""The files of a STAR release: a training checkpoint, and the tokenizer of another repository."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar.checkpoints import convert_model, hub, load_model
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.registry import FAMILIES
from stepvar.models.star.checkpoint import FILES
from tests.checkpoint_writer import Release, write_star_t2i
from tests.checkpoints.test_layouts import assert_holds
from tests.helpers import TINY_STAR_T2I

(FILE,) = FILES["d30-1024-sampler"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_star_t2i(tmp_path_factory.mktemp("star") / "release")


def test_a_folder_and_a_file(release: Release) -> None:
    for name in (release.folder, release.transformer):
        loaded = load_model(name)
        assert_holds(loaded, release)
        assert (loaded.family, loaded.defaults["guidance_scale"]) == ("star", 5.0)


def test_a_file_of_another_name_needs_its_variant(tmp_path: Path) -> None:
    release = write_star_t2i(tmp_path, variant="d30-512", name="star_512.pth")
    assert_holds(load_model(release.transformer, variant="d30-512"), release)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="its name does not tell which model it is; give variant"):
        load_model(release.transformer)
    with pytest.raises(CheckpointError, match="does not fit the model"):  # the released size is another
        load_model(release.transformer, variant="d30-512")


def test_the_hub_has_the_tokenizer_in_the_repository_of_var(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(_: Any, repo: str, name: str, revision: str | None, *__: Any) -> Path:
        asked.append((repo, name, revision))
        return release.folder / name

    variants: Any = FAMILIES["star"].variants
    for name, variant in variants.items():
        monkeypatch.setitem(variants, name, replace(variant, config=TINY_STAR_T2I))
    monkeypatch.setattr(hub, "_download", download)
    assert_holds(load_model("taocrayon/STAR", revision="v1"), release)
    assert asked == [("FoundationVision/var", "vae_ch160v4096z32.pth", None), ("taocrayon/STAR", FILE, "v1")]
    asked.clear()
    with pytest.raises(UsageError, match=r"variant 'd30-512': the name of its file in taocrayon/STAR is not known"):
        load_model("taocrayon/STAR", "d30-512")
    assert asked == []


def test_conversion_keeps_how_scales_are_sampled(release: Release, tmp_path: Path) -> None:
    folder = convert_model(release.folder, tmp_path / "own")
    assert_holds(load_model(folder), release)
    assert json.loads((folder / "config.json").read_text())["model"]["sampler"] == "1024"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampler": None}, r"\d+ unexpected: encoder_proj2.bias"),
        ({"depth": 4}, r"\d+ missing: blocks.3.attn"),
        ({"text_channels": 32}, r"\d+ misshapen: .*encoder_proj.weight \(48, 24\) instead of \(48, 32\)"),
    ],
)
def test_weights_have_to_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    release = write_star_t2i(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": content["model"] | change}))
    with pytest.raises(CheckpointError, match=said):
        load_model(release.folder)


def test_the_table_of_classes_is_the_only_weight_that_is_left_out(tmp_path: Path) -> None:
    release = write_star_t2i(tmp_path)
    content = torch.load(release.transformer, weights_only=True)
    content["trainer"]["var_wo_ddp"]["extra.weight"] = torch.zeros(3)
    torch.save(content, release.transformer)
    with pytest.raises(CheckpointError, match=r"1 unexpected: extra\.weight"):
        load_model(release.folder)
    assert set(FAMILIES["star"].parts["transformer"].ignorable) >= {"class_emb.weight"}
