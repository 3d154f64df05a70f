"""What files hold is checked before it is believed: sizes, types, levels, and the values of weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar import Pipeline
from stepvar.checkpoints import convert_model, find_model, load_model, read_state
from stepvar.checkpoints.int8 import SCALES
from stepvar.checkpoints.sources import find_source
from stepvar.cli import main
from stepvar.errors import CheckpointError, StepvarError, UsageError
from stepvar.models.var.config import CONFIGS
from tests.checkpoint_writer import write_infinity, write_var


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: (10 * w).to(torch.int8), "head.weight holds torch.int8"),
        (lambda w: torch.full_like(w, torch.nan), "head.weight holds NaN or infinity"),
        (lambda w: (1e8 * w).half(), "head.weight holds NaN or infinity"),
        (lambda w: w.to(torch.complex64), "holds more than weights"),
        (lambda w: w.to_sparse(), "holds more than weights"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "holds more than weights|damaged"),
        (lambda w: w.to("meta"), "holds more than weights|damaged"),
    ],
)
def test_weights_that_are_none(tmp_path: Path, change: Callable[[torch.Tensor], Any], said: str) -> None:
    release = write_var(tmp_path)
    state = torch.load(release.transformer)
    torch.save({name: change(w) if name == "head.weight" else w for name, w in state.items()}, release.transformer)
    with pytest.raises(CheckpointError, match=said):
        load_model(release.folder)


def test_weights_that_overflow_name_a_type_that_holds_them(tmp_path: Path) -> None:
    release = write_var(tmp_path)
    state = torch.load(release.transformer)
    name = "blocks.0.attn.proj.weight"
    state[name] = torch.full_like(state[name], 1e6)
    torch.save(state, release.transformer)
    with pytest.raises(
        CheckpointError, match=r"attn.proj.weight holds NaN or infinity as torch.float16.*a wider dtype"
    ):
        load_model(release.folder, dtype=torch.float16)
    load_model(release.folder, dtype=torch.bfloat16)


def circle() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["trainer"] = content
    return content


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    torch.save(circle(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: holds more than weights"):
        read_state(tmp_path / "x.pth")


def test_packed_archives_are_refused_before_they_grow(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3_000_000)}, tmp_path / "stored.pth")
    packed = zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert (tmp_path / "packed.pth").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="packed archive"):
        read_state(tmp_path / "packed.pth")


def test_an_index_that_lists_itself(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    for path in (tmp_path, index):
        with pytest.raises(CheckpointError, match="no shard in the same folder"):
            read_state(path)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.safetensors.index.json"])
def test_devices_and_pipes_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a device or a pipe"):
        read_state(tmp_path / name)
    os.mkfifo(tmp_path / f"pipe-{name}")
    with pytest.raises(CheckpointError, match="a device or a pipe"):
        read_state(tmp_path / f"pipe-{name}")


CONFIG = {"family": "var", "model": CONFIGS["d16"].to_dict(), "defaults": {"guidance_scale": 4.0}}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder of official files, whose ``config.json`` a test writes."""
    for name in ("var_d16.pth", "vae_ch160v4096z32.pth"):
        (tmp_path / name).touch()
    return tmp_path / "config.json"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_configuration_beside_official_files_counts(beside: Path, encoding: str) -> None:
    beside.write_text(json.dumps(CONFIG), encoding=encoding)
    assert find_source(beside.parent).defaults == {"guidance_scale": 4.0}


def test_the_configuration_of_another_program_does_not(beside: Path) -> None:
    for content in ({"model_type": "t5"}, {"family": "llama", "model": {}}, {"family": ["var"], "model": {}}):
        beside.write_text(json.dumps(content))
        assert find_source(beside.parent).defaults["guidance_scale"] == 2.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", "cannot be read"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[1]", "holds a list"),
        ('{"family": "var", "model": NaN}', "NaN is no number"),
        ('{"family": "var", "model": ' + "9" * 5000 + "}", "cannot be read"),
        (CONFIG | {"defaults": {"guidance": 4.0, "foo": 1}}, "unknown settings foo, guidance"),
        (CONFIG | {"defaults": [1]}, r"defaults=\[1\] must be dict"),
        (CONFIG | {"defaults": {"guidance_scale": "x"}}, "guidance_scale='x' must be"),
        (CONFIG | {"defaults": {"top_k": True}}, "top_k=True must be"),
        (CONFIG | {"name": 3}, "name=3 must be str"),
        (CONFIG | {"model": 3}, "model=3 must be dict"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"depth": 10**9}}, "depth=1000000000: at most 512"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"width": 10**12}}, "width=.*at most 1000000"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"depth": "16"}}, "depth='16' must be int"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"depth": True}}, "depth=True must be int"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"depth": 16.0}}, "depth=16.0 must be int"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"patch_nums": [1] * 1000}}, "a list of 1000 entries"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"patch_nums": 3}}, "patch_nums=3 must be"),
        (CONFIG | {"model": CONFIGS["d16"].to_dict() | {"tokenizer": [1]}}, "tokenizer=.* must be an object"),
    ],
)
def test_a_configuration_that_is_wrong_is_named(beside: Path, content: Any, said: str) -> None:
    beside.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=r"config\.json.*" + said):
        find_source(beside.parent)


def test_layers_of_a_text_encoder_are_bounded(tmp_path: Path) -> None:
    shutil.copytree(find_model("scenes"), tmp_path / "scenes")
    path = tmp_path / "scenes" / "config.json"
    content = json.loads(path.read_text())
    for entry, value in (("layers", 10**9), ("width", 10**12), ("vocabulary", 3), ("heads", "x"), ("nothing", 1)):
        path.write_text(json.dumps(content | {"text_encoder": content["text_encoder"] | {entry: value}}))
        with pytest.raises(CheckpointError, match=rf"config\.json.*{entry}"):
            load_model(tmp_path / "scenes")


def test_plain_folders_and_training_checkpoints_load(tmp_path: Path) -> None:
    release = write_var(tmp_path / "release")
    state = torch.load(release.transformer)
    training, plain, torch_plain = (tmp_path / name for name in ("training", "plain", "torch"))
    for folder in (training, plain, torch_plain):
        shutil.copytree(release.folder, folder)
        (folder / release.transformer.name).unlink()
    inner = {"config": {"prog_it": 0}, "var_wo_ddp": state, "vae_local": torch.load(release.tokenizer), "var_opt": {}}
    torch.save({"epoch": 1, "trainer": inner, "args": {"depth": 16}}, training / "ar-ckpt-best.pth")
    save_file(state, plain / "model.safetensors")
    torch.save(state, torch_plain / "pytorch_model.bin")
    expected = load_model(release.folder).model.state_dict()
    for path in (training / "ar-ckpt-best.pth", plain, torch_plain):
        found = load_model(path, "d16").model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (plain / "config.json").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="give variant"):
        load_model(plain)


def test_training_states_of_infinity_load(tmp_path: Path) -> None:
    release = write_infinity(tmp_path)
    state = torch.load(release.transformer)
    expected = load_model(release.transformer).model.state_dict()
    for trainer in (
        {"gpt_fsdp": state, "gpt_ema_fsdp": None, "gpt_opt": {"step": 1}},
        {"gpt_fsdp": {"x": torch.zeros(1)}, "gpt_ema_fsdp": state, "config": {}},
    ):
        torch.save({"args": {}, "gpt_training": True, "trainer": trainer}, release.transformer)
        found = load_model(release.transformer).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_converted_weights_stay_as_they_are_stored(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        folder = convert_model("scenes", tmp_path / "copy")
    finally:
        os.umask(umask)
    original = find_model("scenes")
    names = [path.name for path in folder.glob("*.safetensors")]
    sizes = [sum((place / name).stat().st_size for name in names) for place in (folder, original)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    for name in names:
        found, expected = load_file(folder / name), load_file(original / name)
        assert all(torch.equal(found[key], expected[key]) for key in found)
    ours, theirs = (load_model(place).model.state_dict() for place in (folder, original))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    "scales", [torch.ones(3), torch.ones(4, 1), torch.ones(4, dtype=torch.int8)], ids=("rows", "shape", "type")
)
def test_wrong_factors_of_eight_bit_rows(tmp_path: Path, scales: torch.Tensor) -> None:
    save_file({"w": torch.ones(4, 2, dtype=torch.int8), f"w{SCALES}": scales}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"w{SCALES}"):
        read_state(tmp_path / "x.safetensors")
    save_file({f"w{SCALES}": torch.ones(4)}, tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match=f"w{SCALES}"):
        read_state(tmp_path / "alone.safetensors")


def test_what_is_blocked_is_named_without_advice(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1), "best": np.float64(1.0)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / "more.pth")
    assert re.search(r"needs numpy[\w.]*scalar", str(caught.value)), caught.value
    assert "weights_only" not in str(caught.value) and str(caught.value).isprintable()


def test_names_in_files_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    torch.save({"\x1b[31mred\x07": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / "x.pth")
    assert str(caught.value).isprintable() and "red" in str(caught.value)


def test_a_missing_text_encoder_is_told_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_infinity(tmp_path).folder

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("stepvar.pipeline.pretrained.load_model", load)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: no model"):
        Pipeline.from_pretrained(folder, text_encoder=tmp_path / "empty")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match="needs transformers"):
        Pipeline.from_pretrained(folder)
    assert main(["generate", "x", "--model", str(folder), "--out", str(tmp_path / "x.png")]) == 2
    assert "transformers" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udcff", ""])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(StepvarError):
        load_model(name)
