"""The repositories of a Switti release, from the hub or on the disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.checkpoints import convert_model, hub, load_model, save_model
from stepvar.checkpoints.sources import find_outline
from stepvar.core.guidance import GUIDANCE_SCHEDULES
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.switti.checkpoint import FAMILY, MASK, smooth_scales
from tests.checkpoint_writer import SMALL_SWITTI, Release, write_switti
from tests.checkpoints.test_layouts import assert_holds


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_switti(tmp_path_factory.mktemp("switti") / "release")


@pytest.fixture
def copied(release: Release, tmp_path: Path) -> Path:
    """A copy of the release, to change."""
    return Path(shutil.copytree(release.folder, tmp_path / "release"))


def test_folders_named_like_their_repositories(release: Release) -> None:
    for name in (release.folder, release.transformer):  # the folder of both, or the transformer's
        loaded = load_model(name)
        assert_holds(loaded, release)
        assert (loaded.family, loaded.name) == ("switti", "switti-2.5b-512")
        assert loaded.model.config == SMALL_SWITTI


def test_folders_of_other_names_need_a_variant_and_the_tokenizer(release: Release, copied: Path) -> None:
    weights = (copied / "Switti").rename(copied / "weights")
    codes = (copied / "VQVAE-Switti").rename(copied / "codes")
    with pytest.raises(UsageError, match="its name does not tell which model it is"):
        load_model(weights, tokenizer=codes)
    assert_holds(load_model(weights, "2.5b-512", tokenizer=codes), release)


@pytest.mark.parametrize(
    ("name", "variant", "chosen"),
    [
        ("yresearch/Switti", None, "Switti"),
        ("YResearch/switti-1024", None, "Switti-1024"),
        ("yresearch/Switti", "2.5b-1024", "Switti-1024"),
    ],
)
def test_from_the_hub(
    release: Release, monkeypatch: pytest.MonkeyPatch, name: str, variant: str | None, chosen: str
) -> None:
    asked: list[tuple[str, str]] = []

    def download(_: Any, repo: str, name: str, *__: Any) -> Path:
        asked.append((repo, name))
        return release.tokenizer if "VQVAE" in repo else release.transformer

    monkeypatch.setattr(hub, "_download", download)
    assert_holds(load_model(name, variant), release)
    assert asked == [("yresearch/VQVAE-Switti", "."), (f"yresearch/{chosen}", ".")]


def test_the_form_with_a_cache(tmp_path: Path) -> None:
    release = write_switti(tmp_path, replace(SMALL_SWITTI, cached=True), "Switti-AR")
    loaded = load_model(tmp_path)
    assert_holds(loaded, release)
    assert loaded.model.config.cached and loaded.name == "switti-2.5b-512-ar"


def test_a_repository_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match="yresearch/VQVAE-Switti: revision main holds no safetensors files"):
        load_model("yresearch/Switti")


def test_released_sizes_and_settings() -> None:
    for name, variant in FAMILY.variants.items():
        source = find_outline("yresearch/Switti", name)
        scales, defaults = len(source.config.patch_nums), source.defaults
        assert (scales, source.config.pixels) == ((10, 512) if "512" in name else (14, 1024))
        assert source.config.cached == name.endswith("ar") and source.config.ffn_width == 5120
        guidance = GUIDANCE_SCHEDULES[defaults["guidance_schedule"]](defaults["guidance_scale"], scales)
        alone = [scale for scale, value in enumerate(guidance) if value == 1.0]
        assert alone == ([0, 1, 8, 9] if scales == 10 else [0, 11, 12, 13])
        cold = [scale for scale, value in enumerate(defaults["temperature"]) if value == 0.1]
        sampled = [scale for scale, value in enumerate(smooth_scales(scales)) if value is None]
        assert cold == alone[-len(cold) :] and sampled == [0, 1, *cold] and variant.config == source.config


def test_conversion(release: Release, tmp_path: Path) -> None:
    assert_holds(load_model(convert_model(release.folder, tmp_path / "own")), release)


def test_frequencies_of_the_crop_condition_are_never_rounded(release: Release, tmp_path: Path) -> None:
    """At the size of an image their sines are unrelated numbers after rounding."""
    convert_model(release.folder, tmp_path / "converted", dtype=torch.bfloat16)
    save_model(tmp_path / "saved", "small", release.model, None, None, {}, torch.bfloat16)
    for folder in ("converted", "saved"):
        stored = load_file(tmp_path / folder / "transformer.safetensors")
        assert stored["head.weight"].dtype == torch.bfloat16
        assert torch.equal(stored["crop_embed.weight"], release.model.transformer.crop_embed.weight)


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("Switti", {"depth": 2}, r"does not fit the model; \d+ missing.*misshapen"),
        ("Switti", {"depth": "many"}, "depth='many' must be a whole number"),
        ("Switti", {"reso": 768}, "reso=768 is not supported; only 256, 512, 1024"),
        ("Switti", {"rope": False}, "rope=False is not supported"),
        ("Switti", {"use_crop_cond": False}, "unexpected: blocks.0.crop_cond_scales"),
        ("Switti", {"use_ar": True}, "trained with use_ar=False, and the config.json beside them says use_ar=True"),
        ("VQVAE-Switti", {"vocab_size": 64}, "misshapen"),
    ],
    ids=str,
)
def test_its_own_files_say_what_it_is(copied: Path, part: str, entries: dict[str, Any], message: str) -> None:
    path = copied / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(CheckpointError, match=message):
        load_model(copied)


def test_weights_without_the_mask_of_the_training(release: Release, copied: Path) -> None:
    path = copied / "Switti" / "model.safetensors"
    state = load_file(path)
    del state[MASK]
    save_file(state, path)
    assert_holds(load_model(copied), release)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(copied)
