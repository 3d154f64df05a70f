"""``stepvar eval`` and ``stepvar report``, on a tiny model."""

from __future__ import annotations

import base64
import json
import platform
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.frames import read_frames, write_frames
from stepvar.evaluation.run import Evaluation
from tests.cli.conftest import Run

STEPVAR = "stepvar keep=0.4 last=2"


def options(model: Path, *more: str) -> list[str]:
    return ["eval", "--model", str(model), "--prompts", "scenes:4", "--methods", STEPVAR, "--out", "run", *more]


@pytest.fixture
def finished(shared_model: Path, run: Run, tmp_path: Path) -> Path:
    done = run(*options(shared_model, "--seeds", "0,3", "--rounds", "2", "--batch", "3"))
    assert done.status == 0, done.err
    return tmp_path / "run"


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_run_and_its_report(finished: Path, run: Run) -> None:
    labels = {"dense", STEPVAR, "random keep=0.4 last=2", "skip-last", "drop-guidance", "floor-1", "floor-2"}
    rows = manifest(finished)
    assert {row["method"] for row in rows} == {*labels, "renders"} and len(rows) == 8 * (len(labels) + 1)
    for row in rows:
        assert row["noise_seed"] == 100_000 * row["seed"] + int(row["prompt"])
        if row["method"] != "renders":
            assert Image.open(finished / row["image"]).size == (32, 32)
        if row["method"] not in ("dense", "renders"):
            assert 5 < row["psnr"] < 99 and 0 < row["ssim"] < 1 and row["high_frequency"] > 0
        assert "background" in row["right"] and len(row["features"]) == 256
    results = json.loads((finished / "results.json").read_text())
    by_label = {method["label"]: method for method in results["methods"]}
    assert next(iter(by_label)) == "dense" and set(by_label) == labels
    assert results["notes"]["lpips"].startswith("not available: ")
    own = by_label[STEPVAR]
    assert own["fidelity"]["psnr"]["low"] <= own["fidelity"]["psnr"]["mean"] <= own["fidelity"]["psnr"]["high"]
    equal = by_label["random keep=0.4 last=2"]["cost"]["flop_speedup"]
    assert equal * 0.99 < own["cost"]["flop_speedup"] < equal and equal > 1.2  # the score costs a little, too
    assert own["cost"]["rounds"] == 2 and own["cost"]["loop_speedup"]["median"] > 0
    assert own["semantics"]["background"]["count"] == 8 and own["sets"]["judge-FID"] > 0
    check_page(finished, run)


class Links(HTMLParser):
    """All that a page would load, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.data = ""
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe")
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.inside = tag == "script" and dict(attrs).get("id") == "viewer-data"

    def handle_data(self, data: str) -> None:
        self.data += data if self.inside else ""


def check_page(folder: Path, run: Run) -> None:
    assert run("report", "run", "--quiet").out == ""
    text = (folder / "report.html").read_text()
    links = Links()
    links.feed(text)
    images = [link for link in links.found if not link.startswith("#")]
    assert images and all(link.startswith("data:image/jpeg;base64,") for link in images)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert text.count("<svg") >= 4 and STEPVAR in text and "floor-2" in text and "Tokens that were kept" in text
    for told in ("viewport", "machine", f"Python {platform.python_version()}", "stepvar eval --model", "--seeds 0,3"):
        assert told in text
    viewer = json.loads(links.data)
    first = viewer["prompts"][0]
    assert set(first["images"]) == set(viewer["labels"]) and len(viewer["prompts"]) == 8
    shown = base64.b64decode(first["images"][STEPVAR].removeprefix("data:image/png;base64,"))
    assert shown == (folder / "images" / "stepvar_keep=0.4_last=2" / "00000" / "0000.png").read_bytes()
    table = (folder / "report.md").read_text()
    assert f"| {STEPVAR} |" in table and "| real renders |" in table and "not available" in table


def test_an_interrupted_run_goes_on(
    shared_model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*options(shared_model, "--rounds", "0"))
    assert whole.status == 0
    wanted = manifest(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")
    measure, calls = Evaluation._measured, []

    def failing(self: Any, candidate: Any, *rest: Any) -> Any:
        calls.append(candidate)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, candidate, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_measured", failing)
        stopped = run(*options(shared_model, "--rounds", "0"))
    assert stopped.status == 130 and "images are done; the same command goes on" in stopped.out
    half = manifest(tmp_path / "run")
    assert 0 < len(half) < len(wanted) and run("report", "run").status == 0  # a report of what there is
    again = run(*options(shared_model, "--rounds", "0"))
    assert again.status == 0
    by_key = {(row["method"], row["prompt"]): row for row in manifest(tmp_path / "run")}
    assert by_key == {(row["method"], row["prompt"]): row for row in wanted}
    before = (tmp_path / "run" / "manifest.jsonl").read_bytes()
    assert run(*options(shared_model, "--rounds", "0")).status == 0  # nothing is left to do
    assert (tmp_path / "run" / "manifest.jsonl").read_bytes() == before


def test_layouts_of_the_published_suites(shared_model: Path, run: Run, tmp_path: Path) -> None:
    prompts = ["a red circle on grass", "a blue star on sand"]
    lines = [json.dumps({"tag": "colors", "prompt": prompt}) for prompt in prompts]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    common = ["eval", "--model", str(shared_model), "--rounds", "0", "--quiet", "--seeds", "0,1"]
    assert run(*common, "--prompts", "evaluation_metadata.jsonl", "--out", "geneval").status == 0
    folder = tmp_path / "geneval" / "images" / "stepvar"
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001"]
    assert (folder / "00001" / "metadata.jsonl").read_text() == lines[1] + "\n"
    assert sorted(p.name for p in (folder / "00001" / "samples").iterdir()) == ["0000.png", "0001.png"]
    (tmp_path / "dpg").mkdir()
    for index, prompt in enumerate(prompts):
        (tmp_path / "dpg" / f"coco{index}.txt").write_text(prompt)
    assert run(*common, "--prompts", "dpg", "--out", "dpg-run").status == 0
    sheets = tmp_path / "dpg-run" / "images" / "stepvar"
    assert sorted(path.name for path in sheets.iterdir()) == ["coco0.png", "coco1.png"]
    sheet = np.asarray(Image.open(sheets / "coco0.png"))
    second = np.asarray(Image.open(tmp_path / "dpg-run" / "pictures" / "stepvar" / "coco0" / "0001.png"))
    assert sheet.shape == (64, 64, 3) and (sheet[:32, 32:] == second).all() and not sheet[32:].any()
    results = json.loads((tmp_path / "dpg-run" / "results.json").read_text())
    assert results["methods"][0]["semantics"] == {}  # these prompts are for other judges
    assert results["notes"]["FID and KID"].startswith("not available: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nothing"], "method 'nothing': unknown"),
        (["--methods", "stepvar keep=2"], "keep=2.0: must be a number above 0 and at most 1"),
        (["--methods", "stepvar", "--methods", "stepvar"], "'stepvar' is given 2 times"),
        (["--methods", "skip-last count=9"], "skip fewer"),
        (["--seeds", "0,0"], "seeds '0,0': give different whole numbers"),
        (["--prompts", "nowhere.txt"], "prompts 'nowhere.txt': no such file or folder"),
        (["--batch", "0"], "batch=0: must be a number from 1 to 10000"),
        (["--scores", "beauty"], "scores: 'beauty' is unknown"),
        (["--reference", "."], "reference '.': has 0 images"),
        (["--limit", "0"], "limit=0: must be a number of at least 1"),
    ],
)
def test_refusals(shared_model: Path, run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("eval", "--model", shared_model, "--out", "run", *arguments)
    assert result.status == 2 and message in result.error()
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_told_before_anything_is_generated(
    shared_model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("eval", "--model", shared_model, "--out", "run")
    assert result.status == 2 and not (tmp_path / "run").exists()
    assert result.error() == "evaluation: needs the package matplotlib; pip install '.[eval]' in the checkout"


def test_other_settings_do_not_mix(finished: Path, shared_model: Path, run: Run) -> None:
    result = run(*options(shared_model, "--seeds", "0"))
    assert result.status == 2 and "(seeds: [0, 3] there, [0] here)" in result.error()
    assert run("report", "nowhere").status == 2
    assert "must end in .html" in run("report", "run", "--out", "page.txt").error()
    assert RunFolder.read(finished).settings["seeds"] == [0, 3]


def test_videos_are_kept_frame_by_frame(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, size=(3, 8, 6, 3), dtype=np.uint8)
    write_frames(frames, tmp_path / "clip" / "0000.png")
    write_frames(frames[:1], tmp_path / "clip" / "0001.png")
    assert sorted(p.name for p in (tmp_path / "clip").iterdir()) == ["0000", "0001.png"]
    assert (read_frames(tmp_path / "clip" / "0000.png") == frames).all()
    assert (read_frames(tmp_path / "clip" / "0001.png") == frames[:1]).all()


MINE = '''
from dataclasses import dataclass
from typing import ClassVar

from stepvar.methods import Random


@dataclass(frozen=True)
class Mine(Random):
    """Random pruning under another name."""

    name: ClassVar[str] = "mine"
'''


def test_a_method_of_another_package_takes_part(
    shared_model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluated_elsewhere.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    method = "evaluated_elsewhere:Mine keep=0.4 last=2"
    common = ["--prompts", "scenes:2", "--rounds", "1", "--quiet", "--out", "run"]
    done = run("eval", "--model", shared_model, *common, "--methods", method)
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    own = next(entry for entry in results["methods"] if entry["label"] == method)
    assert own["images"] == 2 and own["cost"]["kept_share"] < 1 and own["settings"].startswith("Mine(")


def test_methods_that_decide_by_the_image_run_image_by_image(shared_model: Path, run: Run, tmp_path: Path) -> None:
    """In the same batches as the others, with the same random numbers."""
    threshold, all_kept = "sparsevar:threshold threshold=0.97", "sparsevar:threshold threshold=0"
    command = ["eval", "--model", str(shared_model), "--prompts", "scenes:3", "--out", "run", "--rounds", "1"]
    done = run(*command, "--methods", threshold, "--methods", all_kept, "--batch", "3")
    assert done.status == 0, done.err
    rows = [row for row in manifest(tmp_path / "run") if row["method"] in (threshold, all_kept)]
    assert len({(row["method"], row["prompt"]) for row in rows}) == len(rows) == 6
    assert all(row["psnr"] > 60 for row in rows if row["method"] == all_kept)  # dense, with other roundings
    assert all(row["psnr"] < 60 for row in rows if row["method"] == threshold)
