"""Every published layout gives every tensor, through the one way in."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from stepvar.checkpoints import LoadedModel, load_model, read_state
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.infinity import checkpoint as infinity
from stepvar.models.registry import FAMILIES
from stepvar.models.var import checkpoint as var
from tests.checkpoint_writer import INFINITY_LAYOUTS, Layout, Release, write_infinity, write_state, write_var


def assert_holds(loaded: LoadedModel, release: Release, dtype: torch.dtype = torch.float32) -> None:
    own, expected = loaded.model.state_dict(), deepcopy(release.model).set_precision(dtype).state_dict()
    assert own.keys() == expected.keys() and loaded.model.dtype == dtype
    for name, tensor in own.items():
        assert tensor.dtype == expected[name].dtype and tensor.device.type == "cpu" and not tensor.requires_grad
        assert torch.equal(tensor, expected[name]), name
    assert not loaded.model.training
    assert loaded.model.config == release.model.config


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """What storing in ``dtype`` leaves of a model's weights."""
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.to(dtype))


@pytest.mark.parametrize("layout", INFINITY_LAYOUTS)
def test_infinity_layouts(tmp_path: Path, layout: Layout) -> None:
    release = write_infinity(tmp_path, layout=layout)
    loaded = load_model(release.transformer, variant="2b")
    assert_holds(loaded, release)
    assert (loaded.family, loaded.text_encoder) == ("infinity", None)


@pytest.mark.parametrize("style", ["wrapped", "plain"])
@pytest.mark.parametrize("spelling", [0, 1])
def test_tokenizer_styles_and_spellings(tmp_path: Path, style, spelling: int) -> None:
    release = write_infinity(tmp_path, style=style, spelling=spelling)
    assert release.tokenizer.name == ("infinity_vae_d32reg.pth", "infinity_vae_d32_reg.pth")[spelling]
    assert_holds(load_model(tmp_path), release)


@pytest.mark.parametrize("variant", list(infinity.VARIANTS))
def test_infinity_folders(tmp_path: Path, variant: str) -> None:
    sharded = not Path(infinity.VARIANTS[variant].transformer[0]).suffix
    release = write_infinity(tmp_path, variant=variant, layout="shards" if sharded else "flat")
    loaded = load_model(tmp_path, variant)
    assert_holds(loaded, release)
    assert_holds(load_model(tmp_path), release)  # there is one only
    assert loaded.defaults == infinity.VARIANTS[variant].defaults


@pytest.mark.parametrize("variant", list(var.VARIANTS))
def test_var_folders(tmp_path: Path, variant: str) -> None:
    release = write_var(tmp_path, variant=variant)
    loaded = load_model(tmp_path, variant)
    assert_holds(loaded, release)
    assert_holds(load_model(release.transformer), release)
    assert (loaded.family, loaded.defaults["guidance_scale"], loaded.defaults["top_k"]) == ("var", 2.5, 900)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    release = write_infinity(tmp_path, dtype=stored)
    round_weights(release.model, stored)
    assert_holds(load_model(tmp_path, dtype=dtype), release, dtype)


def test_weights_do_not_depend_on_the_files(tmp_path: Path) -> None:
    release = write_infinity(tmp_path)
    loaded = load_model(tmp_path)
    for path in (release.transformer, release.tokenizer):
        path.write_bytes(bytes(path.stat().st_size))  # in place: a mapped tensor would change
    assert_holds(loaded, release)


def test_a_tokenizer_elsewhere(tmp_path: Path) -> None:
    release = write_infinity(tmp_path / "model")
    (tmp_path / "other").mkdir()
    moved = shutil.move(release.tokenizer, tmp_path / "other" / "vae.pth")
    assert_holds(load_model(release.transformer, tokenizer=moved), release)
    assert_holds(load_model(release.folder, tokenizer=moved), release)
    with pytest.raises(CheckpointError, match=r"lacks the tokenizer infinity_vae_d32reg\.pth or .*give the path"):
        load_model(release.transformer)
    with pytest.raises(UsageError, match="does not exist"):
        load_model(release.transformer, tokenizer=tmp_path / "gone.pth")


def test_the_configuration_beside_names_a_file_of_any_name(tmp_path: Path) -> None:
    release = write_infinity(tmp_path)
    renamed = release.transformer.rename(tmp_path / "mine.pth")
    loaded = load_model(renamed)
    assert_holds(loaded, release)
    assert loaded.name == "mine"
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="give variant"):
        load_model(renamed)
    with pytest.raises(CheckpointError, match="does not fit"):  # without it, the released size is meant
        load_model(renamed, variant="2b")


def test_a_configuration_of_another_program_is_left_alone(tmp_path: Path) -> None:
    write_infinity(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(tmp_path)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    write_state(tmp_path / "x.pth", state, "ema")
    assert torch.equal(read_state(tmp_path / "x.pth")["a"], torch.ones(2))


def test_null_text_of_another_length(tmp_path: Path) -> None:
    release = write_infinity(tmp_path)
    state = torch.load(release.transformer)
    rows = state["cfg_uncond"]
    torch.save(state | {"cfg_uncond": torch.cat([rows, rows])}, release.transformer)
    assert_holds(load_model(tmp_path), release)
    torch.save(state | {"cfg_uncond": rows[:5].clone()}, release.transformer)
    with pytest.raises(CheckpointError, match="cfg_uncond has 5 rows, the model needs 16"):
        load_model(tmp_path)


def test_several_models_in_a_folder(tmp_path: Path) -> None:
    write_var(tmp_path)
    shutil.copy(tmp_path / "var_d16.pth", tmp_path / "var_d20.pth")
    with pytest.raises(UsageError, match="give variant, one of d16, d20"):
        load_model(tmp_path)
    assert load_model(tmp_path, "d20").family == "var"
    with pytest.raises(UsageError, match=r"'d24'.*holds d16, d20"):
        load_model(tmp_path, "d24")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"variant": "9b"}, "9b.*holds 2b"),
        ({"revision": "main"}, "applies to releases on the hub"),
        ({"dtype": torch.int8}, "floating-point"),
    ],
)
def test_wrong_arguments(infinity_release: Release, arguments, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_model(infinity_release.folder, **arguments)


def test_unknown_names(tmp_path: Path, infinity_release: Release) -> None:
    with pytest.raises(UsageError, match=r"scenes, scenes-video, wardrobe, a release on the hub .Found.*local folder"):
        load_model("FoundationVision/nothing")
    with pytest.raises(UsageError, match="one model without variants"):
        load_model("scenes", variant="2b")
    with pytest.raises(UsageError, match="variant '9b': unknown; choose one of 125m, 2b"):
        load_model(infinity_release.transformer, variant="9b")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is no weight file"):
        load_model(tmp_path / "model.onnx")


def test_ignorable_names_are_those_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models" / "checkpoints.md").read_text(encoding="utf-8")
    for family in FAMILIES.values():
        for part in family.parts.values():
            for pattern in part.ignorable:
                assert f"`{pattern}`" in page


def test_index_of_shards_by_its_path(tmp_path: Path) -> None:
    release = write_infinity(tmp_path, variant="8b", layout="shards")
    index = release.transformer / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    assert set(read_state(index)) == set(names)
