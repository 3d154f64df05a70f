"""Videos from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar.checkpoints import save_model
from stepvar.media.video import Video
from stepvar.text import WordEncoder
from tests.helpers import TINY_STAR, make_star
from tests.pipeline.test_video_pipeline import DEFAULTS, PROMPTS, TEXT


@pytest.fixture(scope="module")
def star_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("star")
    save_model(folder, "tiny-star", make_star(), WordEncoder(**TEXT), TEXT, DEFAULTS, torch.float32)
    return folder


@pytest.fixture
def generate(run: Any, star_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run("generate", PROMPTS[0], "--model", star_folder, *arguments)


def test_writes_a_video_and_says_so(generate: Any, run: Any) -> None:
    result = generate("--seconds", 3, "--seed", 7, "--out", "ball.mp4", "--report", "ball.json", "--method", "stepvar")
    assert result.status == 0, result.err
    assert "ball.mp4: 48x32, 7 frames at 2 per second, seed 7" in result.out
    video = Video.read("ball.mp4")
    assert video.frames.shape == (7, 32, 48, 3) and video.fps == TINY_STAR.fps
    scales = json.loads(Path("ball.json").read_text())["scales"]
    assert [scale["clip"] for scale in scales] == [0] * 5 + [1] * 4
    assert [scale["scale"] for scale in scales] == [0, 0, 1, 1, 2, 0, 0, 1, 2]


def test_images_begin_videos(generate: Any) -> None:
    Image.fromarray(np.full((32, 48, 3), 200, np.uint8)).save("grey.png")
    result = generate("--seconds", 1, "--image", "grey.png", "--seed", 1, "--out", "grey.gif")
    assert result.status == 0 and "grey.gif: 48x32, 3 frames" in result.out
    assert generate("--seconds", 0, "--seed", 1).status == 0 and Path("scene.png").is_file()
    assert generate("--seconds", 1, "--seed", 1).status == 0 and Path("scene.mp4").is_file()


def test_compare_shows_both_videos_side_by_side(generate: Any) -> None:
    arguments = ("--seconds", 3, "--seed", 7, "--compare", "--runs", 1, "--out", "both.gif", "--report", "both.json")
    result = generate(*arguments, "--keep", 0.25)
    assert result.status == 0, result.err
    assert "1 video(s)" in result.out and "both.gif" in result.out
    both = Video.read("both.gif")
    assert len(both) == 7 and both.fps == TINY_STAR.fps
    assert both.size[0] > 3 * 48 and (both.frames[0] != both.frames[-1]).any()
    numbers = json.loads(Path("both.json").read_text())
    assert numbers["token_share"] < 1 and 0 < numbers["psnr"] < 60


def test_compare_of_equal_videos_says_so(generate: Any) -> None:
    result = generate("--seconds", 1, "--seed", 7, "--compare", "--runs", 1, "--keep", 1, "--report", "both.json")
    assert result.status == 0, result.err
    assert "infinite" in result.out and Path("scene.mp4").is_file()
    assert json.loads(Path("both.json").read_text())["psnr"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "ball.png"], ["ball.png", ".mp4 or .gif", "--seconds 0"]),
        (["--seconds", "0", "--out", "ball.mp4"], ["ball.mp4", ".png"]),
        (["--seconds", "2", "--out", "ball.mp4"], ["seconds=2", "1, 3, 6"]),
        (["--out", "ball.mp4", "--preview", "p.png"], ["preview"]),
        (["--out", "ball.mp4", "--image", "gone.png"], ["gone.png"]),
        (["--out", "ball.mp4", "--quality", "101"], ["quality=101"]),
        (["--out", "ball.webm"], ["ball.webm"]),
    ],
)
def test_mistakes_are_one_line(generate: Any, arguments: list[str], words: list[str]) -> None:
    result = generate(*arguments)
    assert result.status == 2 and all(word in result.err for word in words), result.err
    assert result.err.count("\n") == 1 and not list(Path().glob("*"))


def test_models_of_images_generate_no_videos(run: Any, shared_model: Path, tmp_path: Path) -> None:
    for arguments in (["--seconds", 5, "--out", "a.png"], ["--out", "a.mp4"], ["--image", "a.png"]):
        result = run("generate", "a red circle", "--model", shared_model, *arguments)
        assert result.status == 2 and result.err.count("\n") == 1, result.err
