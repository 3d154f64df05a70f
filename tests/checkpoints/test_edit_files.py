"""Files of VAREdit: they have the names and shapes of Infinity's, so their place or the caller says what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stepvar.checkpoints import load_model
from stepvar.checkpoints.sources import find_outline
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.infinity import Infinity
from stepvar.models.infinity.config import CONFIGS
from stepvar.models.varedit import VAREdit
from stepvar.models.varedit.checkpoint import VARIANTS
from tests.checkpoint_writer import write_sizes
from tests.helpers import TINY, make_edit

TOKENIZER = "infinity_vae_d56_f8_14_patchify.pth"


def write_release(folder: Path, name: str = "8B-512.pth", family: str | None = "varedit") -> Path:
    """A transformer as it is released, flat, the tokenizer under ``vae``, and a note of the small size."""
    model = make_edit()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.transformer.state_dict() | {"lvl_1L": torch.zeros(1, 5, dtype=torch.int64)}, folder / name)
    mask = {"quantizer.lfq.mask": 2 ** torch.arange(6)}
    torch.save({"vae": dict(model.tokenizer.state_dict()) | mask}, folder / TOKENIZER)
    if family is not None:
        write_sizes(folder, family, TINY)
    return folder / name


@pytest.mark.parametrize("place", ["folder", "file", "variant", "family and variant"])
def test_a_release_is_known_by_its_name(tmp_path: Path, place: str) -> None:
    path = write_release(tmp_path)
    name = tmp_path if place == "folder" else path
    variant = {"variant": "8b-512", "family and variant": "varedit-8b-512"}.get(place)
    loaded = load_model(name, variant)
    assert loaded.family == "varedit" and type(loaded.model) is VAREdit
    assert loaded.defaults == {"guidance_scale": 3.0, "temperature": 0.1, "top_k": 900, "top_p": 0.97}
    expected = make_edit().transformer.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in loaded.model.transformer.state_dict().items())


def test_another_name_needs_the_family(tmp_path: Path) -> None:
    path = write_release(tmp_path, "mine.pth", family=None)
    with pytest.raises(
        UsageError, match=r"'8b-512': mine.pth may be of several families; give one of infinity-8b-512, v"
    ):
        load_model(path, "8b-512")
    write_sizes(tmp_path, "varedit", TINY)
    for variant in ("8b-512", "varedit-8b-512", None):
        assert type(load_model(path, variant).model) is VAREdit
    write_sizes(tmp_path, "infinity", TINY)
    assert type(load_model(path, "8b-512").model) is Infinity  # either kind may be loaded as the other


def test_loading_is_strict(tmp_path: Path) -> None:
    path = write_release(tmp_path)
    weights = torch.load(path, weights_only=True)
    torch.save({name: weight for name, weight in weights.items() if name != "head.bias"}, path)
    with pytest.raises(CheckpointError, match=r"1 missing: head.bias"):
        load_model(tmp_path)


def test_several_variants_in_a_folder_have_to_be_told_apart(tmp_path: Path) -> None:
    write_release(tmp_path)
    write_release(tmp_path, "8B-1024.pth")
    with pytest.raises(UsageError, match="holds several models; give variant, one of 8b-512, 8b-1024"):
        load_model(tmp_path)
    assert load_model(tmp_path, "8b-1024").family == "varedit"


def test_released_sizes_are_those_of_infinity() -> None:
    for name, size, resolution in (("8b-512", "8b", "0.25M"), ("8b-1024", "8b", "1M"), ("2b-512", "2b", "0.25M")):
        config = VARIANTS[name].config
        assert (config.depth, config.width, config.heads, config.tokenizer) == (
            CONFIGS[size].depth, CONFIGS[size].width, CONFIGS[size].heads, CONFIGS[size].tokenizer,
        )  # fmt: skip
        assert config.resolution == resolution
    assert VARIANTS["8b-512"].tokenizer == (TOKENIZER,) and "infinity_vae_d32reg.pth" in VARIANTS["2b-512"].tokenizer


def test_the_hub_name_is_enough() -> None:
    for variant in (None, "8b-512"):
        outline = find_outline("hidream-ai/varedit", variant)
        assert outline.family.name == "varedit" and outline.family.edits
    assert json.dumps(find_outline("FoundationVision/Infinity", "8b-512").family.name) == '"infinity"'
