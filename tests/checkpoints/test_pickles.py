"""Files that would keep the reader busy for ever, and settings of a model that no call would take."""

from __future__ import annotations

import json
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar.checkpoints import load_model, read_state
from stepvar.checkpoints.pickles import DEEPEST, depth_of_tuples
from stepvar.errors import CheckpointError


def nested(levels: int) -> Any:
    value: Any = ("a", "b")
    for _ in range(levels - 1):
        value = (value, value)
    return value


@pytest.mark.parametrize("levels", [1, 3, 20, 60])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_depth_is_counted_without_building(levels: int, protocol: int) -> None:
    assert depth_of_tuples(BytesIO(pickle.dumps({"key": [nested(levels)]}, protocol))) == levels


def test_checkpoints_of_pytorch_are_shallow(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3, 4)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive, archive.open("a/data.pkl") as file:
        assert depth_of_tuples(file) < DEEPEST / 4


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path: Path) -> None:
    hostile = pickle.PROTO + b"\x02}" + pickle.dumps(nested(60), 2)[2:-1] + b"K\x01s."
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for member in good.namelist():
            name = member.replace("good/", "bad/")
            bad.writestr(name, hostile if name.endswith("data.pkl") else good.read(member))
    (tmp_path / "old.pth").write_bytes(hostile)
    for name in ("bad.pth", "old.pth"):
        with pytest.raises(CheckpointError, match="tuples in tuples, 60 deep"):
            read_state(tmp_path / name)


def test_tensors_of_other_kinds_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match="more than weights"):
        read_state(tmp_path / "nested.pth")


@pytest.mark.parametrize(
    ("defaults", "said"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": 10**30}, "temperature=1"),
        ({"guidance_scale": 1e30}, "guidance_scale=1e"),
        ({"top_p": 7.5}, "top_p=7.5"),
        ({"top_k": -4}, "top_k=-4"),
        ({"cfg_layers": [-9999]}, "cfg_layers"),
        ({"temperature": {"clips": []}}, "clips=[]"),
        ({"guidance_schedule": "x"}, "guidance_schedule='x'"),
        ({"guidance_type": "x"}, "guidance_type='x'"),
        ({"aspect_ratio": "0:1"}, "aspect_ratio"),
    ],
)
def test_settings_of_a_model_are_held_to_the_bounds_of_a_call(
    shared_folder: Path, tmp_path: Path, defaults: dict[str, Any], said: str
) -> None:
    config = json.loads((shared_folder / "config.json").read_text())
    config["defaults"] |= defaults
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "model")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cli.conftest import write_model

    return write_model(tmp_path_factory.mktemp("model"))
