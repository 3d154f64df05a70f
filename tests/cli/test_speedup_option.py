"""A speed-up on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stepvar.core.plan import Plan
from stepvar.core.report import Report, ScaleReport
from stepvar.cost.speedup import Search
from stepvar.methods import Method
from tests.cli.conftest import Run

PROMPT = "a red circle on sand"


def known_times(self: Search, plan: Plan, method: Method) -> Report:
    """What a device would take whose time is the number of tokens, and half as long again for the rest."""
    dense = method == Method()
    scales = tuple(
        ScaleReport(step.index, step.grid.shape, step.grid.size, step.grid.size, 1, 1e-6 * sum(step.tokens))
        for step in plan.steps
    )
    stages = {"condition": 0.0, "prepare": 0.0} | ({"decode": 1e-3} if dense else {})
    return Report("", "", plan.samples, "cpu", "float32", scales, stages, 0)


@pytest.fixture(autouse=True)
def known_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known times, and a cache of the test's own."""
    monkeypatch.setenv("STEPVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Search, "_generate", known_times)


def test_the_speed_up_achieved_stands_beside_the_one_asked(run: Run, shared_model: Path, tmp_path: Path) -> None:
    result = run("generate", PROMPT, "--model", shared_model, "--speedup", 1.05, "--speedup-of", "scales", "--compare",
                 "--runs", 1, "--report", "report.json", "--out", "a.png", "--method", "random")  # fmt: skip
    assert result.status == 0, result.err
    assert "1.05 times as fast asked of the scales" in result.out and "achieved" in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["budget"]["asked_speedup"] == 1.05 and report["budget"]["speedup_of"] == "scales"
    assert report["budget"]["achieved_speedup"] == report["scales_speedup"]
    assert report["budget"]["settings"]["keep"] < 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_picture_alone_reports_its_plan(run: Run, shared_model: Path, tmp_path: Path) -> None:
    result = run(
        "generate", PROMPT, "--model", shared_model, "--speedup", 1, "--report", "report.json", "--out", "a.png"
    )
    assert result.status == 0, result.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["method"] == "stepvar" and report["budget"]["asked_speedup"] == 1


def test_the_method_may_be_chosen_too(run: Run, shared_model: Path, tmp_path: Path) -> None:
    result = run("generate", PROMPT, "--model", shared_model, "--speedup", 1.1, "--method", "auto", "--report",
                 "report.json", "--out", "a.png")  # fmt: skip
    assert result.status == 0, result.err
    said = re.search(
        r"^auto: (\S+), (nearest to dense of \d+ methods compared, baselines aside, at .*)$", result.out, re.MULTILINE
    )
    assert said is not None and "since no comparison was made on" in said[2]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["method"] == said[1] and report["budget"]["chosen"] == f"{said[1]}: {said[2]}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--speedup", 2, "--keep", 0.5), "speedup and keep: give one of them; the speed-up decides what is kept"),
        (("--speedup", 2, "--last", 2), "speedup and last: give one of them"),
        (("--speedup", 2, "--set", "keep=0.5"), "speedup and keep: give one of them; the speed-up decides keep"),
        (
            ("--speedup", 2, "--method", "stepvar+drop-guidance", "--set", "stepvar.last=2"),
            "speedup and last: give one of them; the speed-up decides last of stepvar",
        ),
        (("--speedup", 2, "--method", "skip-last", "--set", "count=2"), "speedup and count: give one of them"),
        (("--speedup-of", "scales"), "speedup-of 'scales': says what --speedup applies to; give a speed-up, too"),
        (("--speedup", 2, "--speedup-of", "text"), "speedup-of 'text': must be one of image, scales"),
        (("--method", "auto"), "method 'auto': is chosen for a speed-up; give one, too, such as 1.5"),
        (
            ("--speedup", 2, "--method", "auto", "--set", "taper=1"),
            "method 'auto' and set 'taper=1': it chooses the settings",
        ),
        (("--speedup", 2, "--method", "auto", "--keep", 0.5), "speedup and keep: give one of them"),
        (("--speedup", 2, "--method", "dense"), "speedup=2: method 'dense' has nothing to spare; choose another"),
        (("--speedup", 0.5), "speedup=0.5: must be at least 1, and with stepvar here at most"),
        (("--speedup", 1000), "speedup=1000: with stepvar at most"),
    ],
)
def test_speed_ups_that_cannot_be_had(run: Run, shared_model: Path, options: tuple[object, ...], message: str) -> None:
    result = run("generate", PROMPT, "--model", shared_model, *options)
    assert result.status == 2 and result.error().startswith(message)


def test_settings_of_the_other_methods_are_free(run: Run, shared_model: Path) -> None:
    result = run("generate", PROMPT, "--model", shared_model, "--speedup", 1.2, "--speedup-of", "scales", "--method",
                 "stepvar+drop-guidance", "--set", "drop-guidance.last=1", "--out", "a.png")  # fmt: skip
    assert result.status == 0, result.err


def test_calibrate_measures_anew(run: Run, shared_model: Path, tmp_path: Path) -> None:
    result = run("calibrate", "--model", shared_model)
    assert result.status == 0, result.err
    assert "decoding" in result.out and "speed-up" in result.out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 1
    assert run("calibrate", "--model", shared_model, "--quiet").out == ""
    assert all(path.stat().st_mtime_ns > before for path, before in files.items())
