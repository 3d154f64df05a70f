"""The project's own folder format, and conversion to it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from stepvar.checkpoints import convert_model, load_model, save_model
from stepvar.cli import main
from stepvar.errors import CheckpointError, OutputError, UsageError
from stepvar.models.var import VAR
from tests.checkpoint_writer import Release, write_infinity, write_var
from tests.checkpoints.test_layouts import assert_holds, round_weights


def test_saving_a_model_of_any_family(tmp_path: Path, tiny_var: VAR) -> None:
    save_model(tmp_path / "m", "small", tiny_var, None, None, {"top_k": 3}, torch.float32)
    loaded = load_model(tmp_path / "m")
    assert_holds(loaded, Release(tmp_path, tmp_path, tmp_path, tiny_var))
    assert (loaded.name, loaded.family, loaded.defaults) == ("small", "var", {"top_k": 3})
    assert loaded.text_encoder is None
    with pytest.raises(UsageError, match="Linear: is of no family; known are infinity, infinity_star, var, hart"):
        save_model(tmp_path / "n", "x", torch.nn.Linear(1, 1), None, None, {})


def test_the_embedded_model() -> None:
    loaded = load_model("scenes", dtype=torch.bfloat16)
    assert (loaded.name, loaded.family) == ("scenes", "infinity")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.transformer.head.weight.dtype == torch.float32  # by the policy
    assert loaded.text_encoder is not None
    assert {tensor.dtype for tensor in loaded.text_encoder.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
@pytest.mark.parametrize("family", ["infinity", "var"])
def test_conversion(tmp_path: Path, family: str, shard_bytes: int) -> None:
    release = {"infinity": write_infinity, "var": write_var}[family](tmp_path / "in")  # type: ignore[operator]
    counts: list[int] = []
    out = convert_model(release.folder, tmp_path / "out", progress=counts.append, shard_bytes=shard_bytes)
    assert_holds(load_model(out), release)
    assert counts == [len(release.model.state_dict())] * len(release.model.state_dict())
    sharded = (out / "transformer.safetensors.index.json").is_file()
    assert sharded == (shard_bytes < 10**9)
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    again = convert_model(out, tmp_path / "again")  # from one of our own folders
    assert_holds(load_model(again), release)


def test_shards_have_at_most_their_size(tmp_path: Path, infinity_release: Release) -> None:
    most = 100_000
    out = convert_model(infinity_release.folder, tmp_path / "out", shard_bytes=most)
    for path in out.glob("*-of-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= most or len(sizes) == 1


def test_conversion_keeps_defaults_and_text_encoder(tmp_path: Path, infinity_release: Release) -> None:
    config = json.loads((convert_model("scenes", tmp_path / "s") / "config.json").read_text())
    before, after = load_model("scenes"), load_model(tmp_path / "s")
    assert config["name"] == "scenes" and before.defaults == after.defaults
    assert before.text_encoder is not None and after.text_encoder is not None
    for name, tensor in before.text_encoder.state_dict().items():
        assert torch.equal(after.text_encoder.state_dict()[name], tensor)
    released = load_model(convert_model(infinity_release.folder, tmp_path / "r"))
    assert released.defaults == {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 900, "top_p": 0.97}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_infinity(tmp_path / "in")
    source, out = str(release.transformer), str(tmp_path / "out")
    tokenizer = shutil.move(release.tokenizer, tmp_path / "vae.pth")
    arguments = ["convert", source, out, "--dtype", "bfloat16", "--variant", "2b", "--tokenizer", str(tokenizer)]
    assert main(arguments) == 0
    assert f"use it as --model {out}" in capsys.readouterr().out
    with safe_open(tmp_path / "out" / "transformer.safetensors", framework="pt") as file:
        assert file.get_tensor("head.bias").dtype == torch.bfloat16
    round_weights(release.model, torch.bfloat16)
    assert_holds(load_model(out), release)
    assert main(["convert", source, out]) == 1
    assert "exists; choose another folder" in capsys.readouterr().err
    assert main(["convert", source, str(tmp_path / "new"), "--dtype", "int8"]) == 2
    assert main(["convert", "nope", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_infinity(tmp_path / "in")

    def save(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stepvar.checkpoints.saving.save_file", save)
        with pytest.raises(OutputError, match="No space left"):
            convert_model(release.folder, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(OutputError, match=r"needs 0\.0 GB, 0\.0 GB are free"):
            convert_model(release.folder, tmp_path / "out")
    torch.save({"x": torch.ones(1)}, release.transformer)
    with pytest.raises(CheckpointError, match="does not fit"):
        convert_model(release.folder, tmp_path / "out")
    with pytest.raises(OutputError, match="create it first"):
        convert_model(release.folder, tmp_path / "gone" / "out")
    with pytest.raises(UsageError, match="floating-point"):
        convert_model(release.folder, tmp_path / "out", dtype=torch.int8)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
