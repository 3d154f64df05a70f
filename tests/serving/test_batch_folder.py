"""The folder of a batch job: nothing is lost and nothing doubled, wherever a job was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepvar.errors import OutputError, UsageError
from stepvar.serving.batch import folder as module
from stepvar.serving.batch.folder import PARQUET, BatchFolder, Result
from stepvar.serving.batch.rows import Row

SETTINGS = {"name": "scenes", "method": "dense"}


def result(name: str, data: bytes = b"image") -> Result:
    return Result(Row(name, "line 1", "a circle", 3), data, ".png", {"seconds": 1.0})


def manifest(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def job(path: Path, *results: Result, kind: str = ".png") -> BatchFolder:
    folder = BatchFolder.open(path, SETTINGS, kind)
    for one in results:
        folder.add(one)
    return folder


def test_a_row_has_its_file_and_its_line(tmp_path: Path) -> None:
    job(tmp_path / "out", result("one"), Result(Row("two", "line 2", "x"), facts={"error": "no such word"}))
    first, second = manifest(tmp_path / "out")
    assert first == {
        "id": "one",
        "status": "done",
        "prompt": "a circle",
        "seed": 3,
        "file": "images/one.png",
        "seconds": 1.0,
        "place": "line 1",
    }
    assert (tmp_path / "out" / "images" / "one.png").read_bytes() == b"image"
    assert (second["status"], second["error"]) == ("failed", "no such word")


def test_a_job_goes_on_behind_what_is_done_and_tries_failed_rows_again(tmp_path: Path) -> None:
    job(tmp_path / "out", result("one"), result("two", b""))
    folder = BatchFolder.open(tmp_path / "out", SETTINGS, ".png")
    assert folder.done == {"one"}
    folder.add(result("two"))
    assert [(line["id"], line["status"]) for line in manifest(tmp_path / "out")] == [("one", "done"), ("two", "done")]


def test_a_line_that_was_cut_off_and_a_file_that_is_gone_are_generated_again(tmp_path: Path) -> None:
    job(tmp_path / "out", result("one"), result("two"), result("three"))
    path = tmp_path / "out" / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "out" / "images" / "two.png").unlink()
    assert BatchFolder.open(tmp_path / "out", SETTINGS, ".png").done == {"one"}
    assert [line["id"] for line in manifest(tmp_path / "out")] == ["one"]


def test_a_line_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    job(tmp_path / "out", result("one"), result("two"))
    path = tmp_path / "out" / "manifest.jsonl"
    path.write_text("{" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError, match="line 1 is damaged; remove it"):
        BatchFolder.open(tmp_path / "out", SETTINGS, ".png")


def test_settings_may_be_mended_as_long_as_nothing_is_done(tmp_path: Path) -> None:
    job(tmp_path / "out", result("one", b""))
    BatchFolder.open(tmp_path / "out", {**SETTINGS, "method": "stepvar"}, ".png")
    assert json.loads((tmp_path / "out" / "batch.json").read_text(encoding="utf-8"))["method"] == "stepvar"


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    job(tmp_path / "out", result("one"))
    with pytest.raises(UsageError, match="other settings \\(method: 'dense' there, 'stepvar' here\\)"):
        BatchFolder.open(tmp_path / "out", {**SETTINGS, "method": "stepvar"}, ".png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(OutputError, match="holds no batch job"):
        BatchFolder.open(tmp_path / "mine", SETTINGS, ".png")


def test_a_manifest_that_points_out_of_the_folder_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "other.png").touch()
    job(tmp_path / "out", result("one"))
    path = tmp_path / "out" / "manifest.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("images/one.png", "../other.png"), encoding="utf-8")
    assert BatchFolder.open(tmp_path / "out", SETTINGS, ".png").done == set()


def test_parquet_files_hold_each_row_once_however_a_job_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow: pip install '.[batch]'")
    monkeypatch.setattr(module, "PART_ROWS", 2)
    out = tmp_path / "out"
    job(out, result("one"), result("two"), result("three"), kind=PARQUET)  # killed before the second file was full
    module.write_parquet(out / "part-00002.parquet", [result("three")])  # or when it was there, and its lines were not
    assert [line["id"] for line in manifest(out)] == ["one", "two"]
    folder = BatchFolder.open(out, SETTINGS, PARQUET)
    assert folder.done == {"one", "two"}
    folder.add(result("three", b"again"))
    folder.flush()
    rows = [row for part in sorted(out.glob("part-*.parquet")) for row in parquet.read_table(part).to_pylist()]
    assert [(row["id"], row["bytes"]) for row in rows] == [("one", b"image"), ("two", b"image"), ("three", b"again")]
    assert [(line["id"], line["file"]) for line in manifest(out)][-1] == ("three", "part-00002.parquet")


@pytest.mark.parametrize("damage", ["lines", "file"])
def test_a_parquet_file_whose_lines_were_not_all_written_is_generated_again(tmp_path: Path, damage: str) -> None:
    """The disk was full, or the process killed, while they were: some rows would be in two files."""
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install '.[batch]'")
    rows = [result(f"row-{number}") for number in range(module.PART_ROWS + 3)]
    job(tmp_path / "out", *rows, kind=PARQUET).flush()
    lines = (tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if damage == "lines":
        (tmp_path / "out" / "manifest.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    else:
        (tmp_path / "out" / "part-00002.parquet").write_bytes(b"PAR1")
    folder = BatchFolder.open(tmp_path / "out", SETTINGS, PARQUET)
    assert folder.done == {one.row.id for one in rows[: module.PART_ROWS]}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == ["part-00001.parquet"]


def test_parts_are_numbered_behind_the_last_however_many_there_are(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install '.[batch]'")
    folder = job(tmp_path / "out", result("one"), kind=PARQUET)
    folder._parts = 100_000
    folder.flush()
    again = job(tmp_path / "out", result("two"), kind=PARQUET)
    again.flush()
    assert [line["file"] for line in manifest(tmp_path / "out")] == ["part-100001.parquet", "part-100002.parquet"]
