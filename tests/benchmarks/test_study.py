"""The study on a tiny model: what is kept, that it goes on, that shards join, what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import __main__ as study_main
from benchmarks.study import single, summary, tables
from benchmarks.study.candidates import BUDGETS, entries
from benchmarks.study.driver import Driver
from benchmarks.study.storage import Study, joined
from stepvar.errors import UsageError
from stepvar.methods import SkipLast
from tests.cli.conftest import one_thread, shared_model

__all__ = ["one_thread", "shared_model"]


def go(model: Path, out: Path, *more: str) -> Study:
    options = ["--model", str(model), "--out", str(out), "--limit", "4", "--batch", "2"]
    study_main.main([*options, "--groups", "floor", *more])
    (path,) = out.glob("study*.json")
    return Study.read(path)


@pytest.fixture(scope="module")
def whole(shared_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    out = tmp_path_factory.mktemp("whole")
    return out, go(shared_model, out, "--seeds", "2")


def figures(study: Study) -> dict[int, Any]:
    """All that does not depend on the clock."""
    timed = ("loop", "decode")
    return {
        number: {key: {n: v for n, v in row.items() if n not in timed} for key, row in batch["rows"].items()}
        for number, batch in sorted(study.batches.items())
    }


def test_every_contender_has_figures_of_every_picture(whole: tuple[Path, Study]) -> None:
    _, study = whole
    assert [batch["items"] for batch in study.batches.values()] == [
        [[0, 0], [1, 0]], [[2, 0], [3, 0]], [[0, 1], [1, 1]], [[2, 1], [3, 1]],
    ]  # fmt: skip
    for batch in study.batches.values():
        assert set(batch["rows"]) == {*study.entries, "dense/dense", "dense/dense again", "real/renders"}
        for key, row in batch["rows"].items():
            assert len(row["right"]) == len(row["detail"]) == 2
            if key != "real/renders":
                assert len(row["psnr"]) == len(row["ssim"]) == 2 and row["loop"] > 0 and row["decode"] > 0
        assert batch["rows"]["dense/dense again"]["psnr"] == [99.0, 99.0]
        assert max(batch["rows"]["floor/floor-3"]["psnr"]) < 60
    assert study.moments["real/renders"].count == study.moments["floor/floor-1"].count == 8


def test_methods_and_their_pictures(shared_model: Path, tmp_path: Path) -> None:
    study = go(shared_model, tmp_path, "--limit", "2", "--seeds", "1", "--groups", "methods")
    (batch,) = study.batches.values()
    assert max(batch["rows"]["methods/random@2.0"]["psnr"]) < 60
    assert batch["rows"]["methods/random@2.0"] != batch["rows"]["methods/random@1.3"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "study.json", "kept.jpg", *(f"pictures-{budget}.jpg" for budget in BUDGETS),
    }  # fmt: skip


def test_an_interrupted_study_goes_on(
    whole: tuple[Path, Study], shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch fails half-way: the first is on disk, and the next start draws the others only."""
    draw, drawn = Driver.batch, []

    def failing(self: Any, study: Study, number: int, *more: Any) -> None:
        drawn.append(number)
        if drawn == [0, 1]:
            raise KeyboardInterrupt
        draw(self, study, number, *more)

    monkeypatch.setattr(Driver, "batch", failing)
    with pytest.raises(KeyboardInterrupt):
        go(shared_model, tmp_path, "--seeds", "2")
    assert list(Study.read(tmp_path / "study.json").batches) == [0]
    again = go(shared_model, tmp_path, "--seeds", "2")
    assert drawn == [0, 1, 1, 2, 3]
    assert figures(again) == figures(whole[1])


def test_shards_join_to_the_whole(whole: tuple[Path, Study], shared_model: Path, tmp_path: Path) -> None:
    parts = [go(shared_model, tmp_path / str(i), "--seeds", "2", "--shard", f"{i}/2") for i in range(2)]
    assert [sorted(part.batches) for part in parts] == [[0, 2], [1, 3]]
    assert figures(joined(parts)) == figures(whole[1])
    assert joined(parts).moments["dense/dense"].count == 8
    with pytest.raises(UsageError, match="batch 0 is in two files"):
        joined([parts[0], parts[0]])
    with pytest.raises(UsageError, match="no result files"):
        joined([])


def test_other_settings_are_refused(whole: tuple[Path, Study], shared_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was made with other settings or methods"):
        go(shared_model, whole[0], "--seeds", "1")
    with pytest.raises(UsageError, match=r"shard '2/2': give i/n"):
        go(shared_model, tmp_path, "--shard", "2/2")
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(UsageError, match="is no result of the study"):
        go(shared_model, tmp_path)


def test_no_time_no_batch(shared_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(shared_model), "--out", str(tmp_path), "--limit", "2", "--minutes", "-1"]
    study_main.main([*options, "--groups", "floor"])
    assert "stopped before batch 0" in capsys.readouterr().out and not (tmp_path / "study.json").exists()


def test_budgets_are_met_in_operations() -> None:
    """On the embedded model every tunable method comes within 2 % of its budget."""
    from stepvar.evaluation.drawing import Sampling
    from stepvar.pipeline import Pipeline

    pipe = Pipeline.from_pretrained("scenes")
    found = list(entries(study_main.counter(pipe, Sampling.of(pipe).plan(pipe))))
    assert len({entry.key for entry in found}) == len(found)
    for entry in found:
        if entry.group == "methods" and entry.budget:
            assert entry.speedup == pytest.approx(entry.budget, rel=0.02), entry.key
    skipped = [entry for entry in found if isinstance(entry.candidate.method, SkipLast)]
    assert [entry.speedup > 1.5 for entry in skipped] == [True] * len(skipped) and skipped


def test_the_file_is_json_without_not_a_number(whole: tuple[Path, Study]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((whole[0] / "study.json").read_text(), parse_constant=refuse)


def test_figures_and_tables_of_a_study(shared_model: Path, tmp_path: Path) -> None:
    go(shared_model, tmp_path, "--seeds", "2", "--ablation-seeds", "1", "--groups", "floor", "methods", "branches")
    out, images = tmp_path / "results.json", tmp_path / "images"
    images.mkdir()
    summary.main([str(tmp_path), "--out", str(out), "--images", str(images)])
    result = json.loads(out.read_text())
    assert result["info"]["pictures"] == 8 and result["info"]["dense_again_psnr"] == 99.0
    entries = result["entries"]
    assert entries["methods/random@2.0"]["pictures"] == 8 and entries["branches/separate@1.6"]["pictures"] == 4
    against = entries["branches/shared@1.6"]["psnr_against_default"]
    assert against["mean"] == 0 and against["count"] == 4 and "psnr_against_default" not in entries["floor/floor-1"]
    study = Study.read(tmp_path / "study.json")
    stored = [v for batch in study.batches.values() for v in batch["rows"]["methods/random@2.0"]["psnr"]]
    assert entries["methods/random@2.0"]["psnr"]["mean"] == pytest.approx(sum(stored) / 8, rel=1e-4)
    assert entries["dense/dense"]["questions_against_dense"]["mean"] == 0
    (contrast,) = [c for c in result["contrasts"] if c["one"] == "methods/stepvar@2.0" and "random" in c["other"]]
    other = [v for batch in study.batches.values() for v in batch["rows"]["methods/stepvar@2.0"]["psnr"]]
    assert contrast["psnr"]["mean"] == pytest.approx((sum(other) - sum(stored)) / 8, abs=1e-3)
    tables.write_tables(result, tmp_path, images)
    for name in ("info", "methods", "categories", "contrasts", "restoring", "settings"):
        assert (tmp_path / f"study-{name}.md").read_text().strip()
    assert "8 pictures of each method (variants of settings: 1 seed)" in (tmp_path / "study-info.md").read_text()
    assert "+0.00 (+0.00 to +0.00)" in (tmp_path / "study-settings.md").read_text()
    methods = (tmp_path / "study-methods.md").read_text()
    assert methods.count("| dense |") == 3 and methods.count("| random |") == 3 and "| floor-2 |" in methods
    for name in ("psnr", "detail", "questions", "fid"):
        ElementTree.fromstring((images / f"study-{name}.svg").read_text())
    assert (images / "study-kept.jpg").exists()


def test_questions_are_read_from_their_bits(whole: tuple[Path, Study]) -> None:
    """The share of questions of a real render is near 1; all bits set is 1, none 0."""
    figures = summary.Figures(whole[1])
    batch = next(iter(whole[1].batches.values()))
    key = "floor/floor-1"
    before = batch["rows"][key]["right"]
    batch["rows"][key]["right"] = [127, 0]
    try:
        assert figures.values(key, "questions")[:2].tolist() == [1.0, 0.0]
    finally:
        batch["rows"][key]["right"] = before
    assert figures.values("real/renders", "questions").mean() > 0.6


def test_single_pictures_are_timed_in_turn(shared_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "single.json"
    single.main(["--model", str(shared_model), "--rounds", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["dense"]["measured"]["median"] == 1.0 and rows["stepvar"]["speedup"] == pytest.approx(1.6, rel=0.02)
    assert all(row["ms"] > 0 for row in rows.values()) and "| stepvar | 1.60x |" in tables.single(result)
