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
from benchmarks.study.match import counted_speedup
from benchmarks.tables import RESULTS
from stepvar.errors import UsageError
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.run import Evaluation
from stepvar.evaluation.summary import rows_by_method
from stepvar.methods import SkipLast
from stepvar.pipeline import Pipeline
from tests.cli.conftest import shared_model

__all__ = ["shared_model"]


def go(model: Path, out: Path, *more: str) -> list[RunFolder]:
    options = ["--model", str(model), "--out", str(out), "--limit", "4", "--batch", "2"]
    study_main.main([*options, "--groups", "floor", *more])
    return [RunFolder.read(path.parent) for path in sorted(out.glob("*/run.json"))]


@pytest.fixture(scope="module")
def whole(shared_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    out = tmp_path_factory.mktemp("whole")
    (folder,) = go(shared_model, out, "--seeds", "2")
    return out, folder


def test_every_candidate_has_figures_of_every_image(whole: tuple[Path, RunFolder]) -> None:
    rows = rows_by_method(whole[1])
    assert set(rows) == {"dense", "dense again", "renders", *whole[1].settings["entries"]}
    images = {(f"{prompt:05}", seed) for prompt in range(4) for seed in range(2)}
    for key, own in rows.items():
        assert set(own) == images and all("background" in row["right"] for row in own.values())
        if key not in ("dense", "renders"):
            assert all(0 < row["ssim"] <= 1 for row in own.values())
    assert {row["psnr"] for row in rows["dense again"].values()} == {99.0}
    assert max(row["psnr"] for row in rows["floor/floor-3"].values()) < 60
    timed = [(row["round"], row["method"]) for row in whole[1].timing]
    assert len(timed) == len(set(timed)) == 4 * 5 and all(row["samples"] == 2 for row in whole[1].timing)


def test_an_interrupted_study_goes_on(
    whole: tuple[Path, RunFolder], shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch fails at its first candidate: the first is on disk, the next start makes the others only."""
    measure, calls = Evaluation._measured, []

    def failing(self: Any, candidate: Any, *rest: Any) -> Any:
        calls.append(candidate.label)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return measure(self, candidate, *rest)

    monkeypatch.setattr(Evaluation, "_measured", failing)
    with pytest.raises(KeyboardInterrupt):
        go(shared_model, tmp_path, "--seeds", "2")
    before = RunFolder.read(tmp_path / "methods")
    assert len(before.rows) == 2 * 6 + 2 * 2  # one batch, and dense and its renders of another
    (again,) = go(shared_model, tmp_path, "--seeds", "2")
    assert again.rows == whole[1].rows and len(calls) == 7 + 15
    assert all(again.rows[key] == row for key, row in before.rows.items())


def test_shards_join_to_the_whole(whole: tuple[Path, RunFolder], shared_model: Path, tmp_path: Path) -> None:
    for shard in ("0/2", "1/2"):
        parts = go(shared_model, tmp_path, "--seeds", "2", "--shard", shard)
    assert [len(part.rows) for part in parts] == [24, 24]
    joined = summary.Study.read(parts)
    assert joined.rows == summary.Study.read([whole[1]]).rows
    with pytest.raises(UsageError, match=r"study: no results; run python -m benchmarks\.study first"):
        summary.Study.read([])
    parts[1].settings["study"]["seeds"] = 1
    with pytest.raises(UsageError, match="was made with other settings; join the parts of one study"):
        summary.Study.read(parts)


def test_other_settings_are_refused(whole: tuple[Path, RunFolder], shared_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a run with other settings \(study seeds: "):
        go(shared_model, whole[0], "--seeds", "1")
    with pytest.raises(UsageError, match=r"shard '2/2': give i/n"):
        go(shared_model, tmp_path, "--shard", "2/2")


def test_no_time_no_batch(shared_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = go(shared_model, tmp_path, "--minutes", "-1", "--seeds", "1")
    assert "methods: 20 images are left; the same command goes on" in capsys.readouterr().out and not folder.rows


def test_budgets_are_met_in_operations() -> None:
    """On the embedded model every tunable method comes within 2 % of a budget."""
    pipe = Pipeline.from_pretrained("scenes")
    found = entries(counted_speedup(pipe, pipe.settings()), ["methods"], [1.6])
    assert len({entry.key for entry in found}) == len(found) > 15
    for entry in found:
        if entry.budget:
            assert entry.speedup == pytest.approx(entry.budget, rel=0.02), entry.key
    skipped = [entry for entry in found if isinstance(entry.method, SkipLast)]
    assert [entry.speedup > 1.5 for entry in skipped] == [True] * len(skipped) and skipped


def test_figures_and_tables_of_a_study(shared_model: Path, tmp_path: Path) -> None:
    go(
        shared_model,
        tmp_path,
        "--seeds",
        "2",
        "--limit",
        "2",
        "--ablation-seeds",
        "1",
        "--groups",
        "floor",
        "methods",
        "branches",
        "--budgets",
        "1.6",
    )
    out, images = tmp_path / "results.json", tmp_path / "images"
    images.mkdir()
    summary.main([str(tmp_path), "--out", str(out), "--images", str(images)])
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert result["info"]["images"] == 4 and result["info"]["dense_again_psnr"] == 99.0
    entries = result["entries"]
    assert entries["methods/random@1.6"]["images"] == 4 and entries["branches/separate@1.6"]["images"] == 2
    against = entries["branches/shared@1.6"]["psnr_against_default"]
    assert against["mean"] == 0 and against["count"] == 2 and "psnr_against_default" not in entries["floor/floor-1"]
    rows = rows_by_method(RunFolder.read(tmp_path / "methods"))
    stored = [row["psnr"] for row in rows["methods/random@1.6"].values()]
    assert entries["methods/random@1.6"]["psnr"]["mean"] == pytest.approx(sum(stored) / 4, rel=1e-4)
    assert entries["dense/dense"]["questions_against_dense"]["mean"] == 0
    (contrast,) = [c for c in result["contrasts"] if c["one"] == "methods/stepvar@1.6" and "random" in c["other"]]
    other = [row["psnr"] for row in rows["methods/stepvar@1.6"].values()]
    assert contrast["psnr"]["mean"] == pytest.approx((sum(other) - sum(stored)) / 4, abs=1e-3)
    tables.write_tables(result, tmp_path, images)
    for name in ("info", "methods", "categories", "contrasts", "restoring", "settings"):
        assert (tmp_path / f"study-{name}.md").read_text().strip()
    assert "4 images of each method (2 of variants of settings)" in (tmp_path / "study-info.md").read_text()
    assert "+0.00 (+0.00 to +0.00)" in (tmp_path / "study-settings.md").read_text()
    methods = (tmp_path / "study-methods.md").read_text()
    assert methods.count("| dense |") == 3 and methods.count("| random |") == 1 and "| floor-2 |" in methods
    for name in ("psnr", "detail", "questions", "fid"):
        ElementTree.fromstring((images / f"study-{name}.svg").read_text())
    sheets = {path.name for path in images.glob("*.jpg")}
    assert sheets == {"study-kept.jpg", *(f"study-pictures-{budget}.jpg" for budget in BUDGETS)}


def test_the_tables_of_the_stored_results(tmp_path: Path) -> None:
    """What the documentation shows can be made from what is stored."""
    result = json.loads((RESULTS / "study.json").read_text())
    tables.write_tables(result, tmp_path, tmp_path)
    assert "| latent-delta |" in (tmp_path / "study-methods.md").read_text()
    assert "NVIDIA H200" in (tmp_path / "study-info.md").read_text()


@pytest.mark.parametrize(("times", "highest", "timed"), [(8, 1.3, True), (8, 1.4, False), (1, 1.2, False)])
def test_measured_speed_ups_are_given_where_one_method_measured_again_stays_within_a_tenth(
    times: int, highest: float, timed: bool
) -> None:
    result = json.loads((RESULTS / "study.json").read_text())
    result["info"]["same_method"] = {"times": times, "lowest": 1.2, "highest": highest}
    for table in (tables.methods, tables.settings):
        assert ("measured speed-up" in table(result)) == timed
    known = tables.info(result)
    assert ("The dense loop takes" in known) == timed == ("too coarse a clock" not in known)
    label = "measured" if timed else "counted in operations"
    assert f"speed-up of the loop over scales, {label}" in tables.chart(result, *tables.CHARTS["psnr"])


def test_intervals_are_counted_with_what_chance_would_give() -> None:
    changes = [{"low": 0.1, "high": 0.2}, {"low": -0.1, "high": 0.2}] * 20
    assert tables.by_chance(changes) == "Of 40 intervals about 2 would exclude 0 by chance; 20 do."


def test_the_questions_of_an_image() -> None:
    assert summary.value_of({"right": {"colours": True, "position": False}}, "questions") == 0.5
    assert (summary.value_of({}, "psnr"), summary.value_of({}, "ssim")) == (99.0, 1.0)  # dense against itself


def test_single_images_are_timed_in_turn(shared_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "single.json"
    single.main(["--model", str(shared_model), "--rounds", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["dense"]["measured"]["median"] == 1.0 and rows["stepvar"]["speedup"] == pytest.approx(1.6, rel=0.02)
    assert all(row["ms"] > 0 for row in rows.values()) and "| stepvar | 1.60x |" in tables.single(result)
