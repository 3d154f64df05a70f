"""``stepvar eval`` on videos: a judge of clips, flicker, and renders of the same clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stepvar.checkpoints import save_model
from stepvar.evaluation.metrics import scenes
from stepvar.evaluation.scenes.clips.judge import HEADS, ClipJudge
from stepvar.models.infinity_star import InfinityStar
from stepvar.text import WordEncoder
from tests.cli.conftest import Run
from training.video.presets import PRESETS
from training.video.transformer import initialise

METHOD = "stepvar keep=0.5 last=1"


@pytest.fixture
def video_model(tmp_path: Path) -> Path:
    """A random model that draws nine frames of 32x32 pixels."""
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    model, encoder = InfinityStar(preset.model), WordEncoder(**preset.text)
    initialise(model.transformer)
    save_model(tmp_path / "model", "tiny-video", model, encoder, preset.text, {"guidance_scale": 2.0})
    return tmp_path / "model"


def test_clips_are_judged_and_compared(
    video_model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    judge = ClipJudge().eval()
    monkeypatch.setattr(scenes, "load_clip_judge", lambda device: judge)
    options = ["--model", video_model, "--prompts", "scenes-video:3", "--methods", METHOD, "--out", "run"]
    done = run("eval", *options, "--rounds", 1, "--batch", 2)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} >= {"dense", METHOD, "renders"}
    for row in rows:
        assert {"motion", "shape", "everything"} <= set(row["right"]) <= {*HEADS, "everything"}
        if row["method"] == METHOD:
            assert len(row["frames"]["psnr"]) == 9
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    own = next(method for method in results["methods"] if method["label"] == METHOD)
    assert own["semantics"]["motion"]["count"] == 3 and "motion" in results["judge_on_renders"]
    assert run("report", "run").status == 0
    assert "motion" in (tmp_path / "run" / "report.md").read_text()
