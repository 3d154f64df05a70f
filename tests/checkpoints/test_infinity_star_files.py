"""Published files of InfinityStar: folders of shards, and a tokenizer under ``vae``."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.checkpoints import load_model
from stepvar.errors import CheckpointError
from stepvar.models.infinity_star import CONFIGS, InfinityStar
from stepvar.models.infinity_star.checkpoint import PARTS, VARIANTS
from tests.checkpoint_writer import Layout, write_star
from tests.checkpoints.test_layouts import assert_holds
from tests.helpers import TINY_STAR

RELEASED = Path(__file__).parents[1] / "goldens" / "istar_released_keys.json"


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_released_folders(tmp_path: Path, variant: str) -> None:
    release = write_star(tmp_path, variant=variant)
    loaded = load_model(tmp_path, variant)
    assert_holds(loaded, release)
    assert_holds(load_model(release.transformer), release)
    assert loaded.family == "infinity_star" and loaded.defaults == VARIANTS[variant].defaults


@pytest.mark.parametrize("layout", ["flat", "safetensors", "bin shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_layouts(tmp_path: Path, layout: Layout, dtype: torch.dtype) -> None:
    release = write_star(tmp_path, layout=layout)
    assert_holds(load_model(release.transformer, "480p", dtype=dtype), release, dtype)


@pytest.mark.parametrize("variant", list(CONFIGS))
def test_names_and_shapes_are_those_of_the_release(variant: str) -> None:
    """Every tensor of the released files, and none more than is known to be unused."""
    with torch.device("meta"):
        model = InfinityStar(CONFIGS[variant])
    released = json.loads(RELEASED.read_text(encoding="utf-8"))
    for part, key in (("transformer", "transformer"), ("tokenizer", "vae")):
        own = {name: list(tensor.shape) for name, tensor in model.get_submodule(part).state_dict().items()}
        unused = [name for name in released[key] if any(fnmatchcase(name, one) for one in PARTS[part].ignorable)]
        assert own == {name: shape for name, shape in released[key].items() if name not in unused}
    parameters = sum(parameter.numel() for parameter in model.transformer.parameters())
    assert round(parameters / 1e6) == 8768


def test_names_of_one_chunk_are_plain() -> None:
    with torch.device("meta"):
        names = InfinityStar(CONFIGS["480p"].__class__(4, 512, 4, 4, TINY_STAR.tokenizer)).transformer.state_dict()
    assert "blocks.3.mlp.down_proj.weight" in names and not any(name.startswith("block_chunks") for name in names)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    for change, said in ((("head.bias", None), "head.bias"), (("extra.weight", torch.zeros(3)), "extra.weight")):
        release = write_star(tmp_path / said, layout="safetensors")
        state = load_file(release.transformer)
        name, value = change
        if value is None:
            del state[name]
        else:
            state[name] = value
        save_file(state, release.transformer)
        with pytest.raises(CheckpointError, match=said):
            load_model(release.transformer, "480p")


def test_a_longer_null_text_is_cut(tmp_path: Path) -> None:
    release = write_star(tmp_path, layout="safetensors")
    state = load_file(release.transformer)
    state["cfg_uncond"] = torch.cat([state["cfg_uncond"], torch.ones(5, TINY_STAR.text_channels)])
    save_file(state, release.transformer)
    assert_holds(load_model(release.transformer, "480p"), release)
