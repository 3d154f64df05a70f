"""A run's folder survives interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepvar.errors import OutputError, UsageError
from stepvar.evaluation.folder import RunFolder, slug


def row(prompt: str, **more: Any) -> dict[str, Any]:
    return {"method": "dense", "prompt": prompt, "seed": 0, **more}


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {"model": "tiny", "seeds": (0, 1)}, {"machine": "one"})
    folder.add([row("a", psnr=30.0)])
    folder.add_timing([{"method": "dense", "round": 0}])
    again = RunFolder.open(tmp_path / "run", {"model": "tiny", "seeds": [0, 1]}, {"machine": "other"})
    assert again.rows == {("dense", "a", 0): row("a", psnr=30.0)} and again.timing == folder.timing
    assert again.info == {"machine": "one"} and again.next_round == 1


def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    folder.add([row("a")])
    manifest = tmp_path / "run" / "manifest.jsonl"
    with manifest.open("a") as file:
        file.write('{"method":"dense","prom')
    again = RunFolder.read(tmp_path / "run")
    assert list(again.rows) == [("dense", "a", 0)]
    again.add([row("b")])
    assert list(RunFolder.read(tmp_path / "run").rows) == [("dense", "a", 0), ("dense", "b", 0)]
    assert manifest.read_text().count("\n") == 2 and "prom{" not in manifest.read_text()


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    (tmp_path / "run" / "manifest.jsonl").write_text('{"method":\n{"method":"dense","prompt":"a","seed":0}\n')
    with pytest.raises(UsageError, match="line 1 is damaged"):
        RunFolder.read(folder.path)


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", {"model": "tiny"})
    with pytest.raises(UsageError, match="holds a run with model='tiny', not 'large'"):
        RunFolder.open(tmp_path / "run", {"model": "large"})
    with pytest.raises(UsageError, match="holds no evaluation"):
        RunFolder.read(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(OutputError, match="exists and holds no evaluation"):
        RunFolder.open(tmp_path / "other", {})
    with pytest.raises(UsageError, match="holds no evaluation"):
        RunFolder.read(tmp_path / "nowhere")


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    with pytest.raises(ValueError):
        folder.add([row("a", psnr=float("inf"))])


def test_labels_as_folders() -> None:
    assert slug("stepvar keep=0.5,0.3") == "stepvar_keep=0.5,0.3"
    assert slug("../odd/name") == ".._odd_name" and slug("///") == "_"
