"""Edits from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.test_image_edits import PROMPTS, photo, write_edit


@pytest.fixture(scope="module")
def edit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_edit(tmp_path_factory.mktemp("edit"))


@pytest.fixture
def generate(run: Any, edit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    photo().save("street.png")
    return lambda *arguments: run("generate", "--model", edit_folder, "--seed", 7, *arguments)


def test_writes_an_edit_of_the_size_of_its_image_and_repeats_it(generate: Any, run: Any) -> None:
    result = generate(PROMPTS[0], "--image", "street.png", "--out", "red.png")
    assert result.status == 0, result.err
    assert "red.png: 40x25, seed 7" in result.out
    again = run("generate", "--from", "red.png", "--out", "again.png")
    assert again.status == 0, again.err
    assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(Image.open("red.png")))
    info = run("info", "red.png").out
    assert "street.png" in info and "generate --from red.png" in info


def test_a_comparison_shows_source_edits_and_kept_tokens(generate: Any) -> None:
    result = generate(
        PROMPTS[0], "--image", "street.png", "--compare", "--runs", 1, "--keep", 0.4, "--out", "sheet.png"
    )
    assert result.status == 0, result.err
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    # Source, dense, method, difference, and one map per pruned scale, in cells as wide as an enlarged image.
    assert sheet.shape[1] in [2 * 32 + count * 384 + (count - 1) * 20 for count in (5, 6, 7)]
    first = sheet[-32 - 240 : -32, 32 : 32 + 384]  # 40x25 enlarged to 384x240
    shown = np.asarray(photo().resize((384, 240), Image.Resampling.LANCZOS))
    assert np.array_equal(first, shown)


def test_a_file_names_an_image_with_each_prompt(generate: Any) -> None:
    photo(20, 30).save("tall.png")
    rows = [{"prompt": PROMPTS[0], "image": "street.png"}, {"prompt": PROMPTS[1], "image": "tall.png"}]
    Path("edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = generate("--prompts", "edits.jsonl", "--out", "all/")
    assert result.status == 0, result.err
    assert [Image.open(f"all/{name}").size for name in ("0001.png", "0002.png")] == [(40, 25), (20, 30)]
    Path("edits.jsonl").write_text(json.dumps({"prompt": PROMPTS[0]}))
    assert "image: this model changes an image" in generate("--prompts", "edits.jsonl").error()
    assert generate("--prompts", "edits.jsonl", "--image", "street.png").status == 0  # one for all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "image: this model changes an image; give it with --image"),
        (("--image", "gone.png"), "image 'gone.png': "),
        (("--image", "notes.png"), "image 'notes.png': is not an image"),
    ],
)
def test_a_bad_image_is_known_before_the_model_is_read(
    run: Any, edit_folder: Path, arguments: Any, message: str, tmp_path: Path
) -> None:
    Path("notes.png").write_text("no image")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((edit_folder / "config.json").read_text())  # no weights to be read
    assert message in run("generate", PROMPTS[0], "--model", bare, *arguments).error()


@pytest.mark.slow
def test_evaluates_edits(run: Any, edit_folder: Path) -> None:
    pytest.importorskip("torchmetrics")
    photo().save("street.png")
    photo(20, 30).save("tall.png")
    rows = [{"prompt": PROMPTS[0], "image": "street.png"}, {"prompt": PROMPTS[1], "image": "tall.png"}]
    Path("edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("eval", "--model", edit_folder, "--prompts", "edits.jsonl", "--out", "run", "--rounds", 0, "--quiet")
    assert "batch=8: the images of the prompts have different sizes; use --batch 1" in run(*command).error()
    result = run(*command, "--batch", 1)
    assert result.status == 0, result.err
    assert Image.open("run/images/stepvar/00001/0000.png").size == (20, 30)
    Path("edits.jsonl").write_text(json.dumps({"prompt": PROMPTS[0]}))
    assert "line 1 has no image, and the model changes one" in run(*command).error()


def test_a_plan_counts_the_source(run: Any) -> None:
    plan = ("plan", "--model", "HiDream-ai/VAREdit", "--variant", "8b-1024", "--method", "stepvar", "--memory", 80)
    result = run(*plan)
    assert result.status == 0, result.err
    assert "varedit-8b-1024 1M 1, stepvar" in result.out
    dense = {line.split("│")[1].strip(): float(line.split("│")[-2]) for line in result.out.splitlines() if "│" in line}
    assert 130 < dense["prepare"] < 140  # TFLOP of 4096 tokens through 8 billion weights, in two rows
    assert 15 < dense["cache"] < 16  # GiB of 14,617 tokens, and of fewer in the first block
