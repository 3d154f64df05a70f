"""``stepvar eval --likelihood`` on a tiny model: captions, no captions, interruption, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepvar.evaluation.likelihood.run import Likelihood
from tests.cli.conftest import Run

METHOD = "stepvar keep=0.4 last=2"


def options(model: Path, *more: str) -> list[str]:
    return ["eval", "--likelihood", "--model", str(model), "--methods", METHOD, "--out", "run", "--batch", "2", *more]


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_run_and_its_report(shared_model: Path, run: Run, tmp_path: Path) -> None:
    done = run(*options(shared_model, "--images", "scenes:3"))
    assert done.status == 0, done.err
    rows = manifest(tmp_path / "run")
    assert {row["method"] for row in rows} == {"dense", METHOD, "random keep=0.4 last=2"} and len(rows) == 9
    assert all(len(row["bits"]) == 7 and min(row["bits"]) > 0 for row in rows)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    dense, own = results["methods"][:2]
    totals = {label: [sum(row["bits"]) for row in rows if row["method"] == label] for label in ("dense", METHOD)}
    assert dense["bits"]["mean"] == pytest.approx(np.mean(totals["dense"])) and "divergence" not in dense
    assert own["against_dense"]["mean"] == pytest.approx(np.mean(totals[METHOD]) - np.mean(totals["dense"]))
    assert own["divergence"]["low"] > 0 and own["share"] < 0.8
    assert [one["divergence"]["mean"] for one in own["by_scale"]][:5] == [0.0] * 5
    assert results["notes"]["skip-last"].startswith("left out: it does not run every scale")
    assert run("report", "run").status == 0
    page, table = (tmp_path / "run" / "report.html").read_text(), (tmp_path / "run" / "report.md").read_text()
    assert page.count("data:image/jpeg") == 3 and "<svg" in page and "bits per image" in table


def test_images_without_captions_and_with_guidance(shared_model: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.webp")
    assert run(*options(shared_model, "--images", "photos")).status == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["guidance_scale"] == [0.0] * 7
    (tmp_path / "run").rename(tmp_path / "plain")
    refused = run(*options(shared_model, "--images", "photos", "--guidance-scale", "3"))
    assert refused.status == 2 and "images without captions have nothing to guide to" in refused.error()
    (tmp_path / "table.csv").write_text("file_name,text\na.webp,a red circle on grass\n")
    guided = ("--images", "photos", "--captions", "table.csv", "--guidance-scale", "3")
    assert run(*options(shared_model, *guided)).status == 0
    assert {row["method"] for row in manifest(tmp_path / "run")} >= {"dense", "drop-guidance"}


def test_an_interrupted_run_goes_on(
    shared_model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*options(shared_model, "--images", "scenes:3")).status == 0
    wanted = sorted(map(str, manifest(tmp_path / "run")))
    (tmp_path / "run").rename(tmp_path / "whole")
    rows, calls = Likelihood._rows, []

    def failing(self: Any, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rows(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Likelihood, "_rows", failing)
        stopped = run(*options(shared_model, "--images", "scenes:3"))
    assert stopped.status == 130 and "the same command goes on" in stopped.out
    assert 0 < len(manifest(tmp_path / "run")) < len(wanted)
    assert run(*options(shared_model, "--images", "scenes:3")).status == 0
    assert sorted(map(str, manifest(tmp_path / "run"))) == wanted


def test_other_weights_are_another_run(shared_model: Path, run: Run, tmp_path: Path) -> None:
    assert run(*options(shared_model, "--images", "scenes:1")).status == 0
    before = manifest(tmp_path / "run")
    refused = run(*options(shared_model, "--images", "scenes:1", "--quantization", "int8"))
    assert refused.status == 2 and "holds a run with other settings" in refused.error()
    assert manifest(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--likelihood"], "images: --likelihood needs some"),
        (["--images", "scenes:3"], "they are what --likelihood measures"),
        (["--likelihood", "--images", "scenes:3", "--scores", "clip"], "--likelihood generates no images"),
        (["--likelihood", "--images", "nowhere"], "images 'nowhere': no such folder"),
        (
            ["--likelihood", "--images", "scenes:3", "--methods", "skip-last"],
            "methods 'skip-last': it does not run every scale",
        ),
    ],
)
def test_refusals(shared_model: Path, run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("eval", "--model", shared_model, "--out", "run", *arguments)
    assert result.status == 2 and message in result.error()
    assert not (tmp_path / "run").exists()
