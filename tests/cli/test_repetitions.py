"""A file says how it was made, and is made again from that alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepvar import Pipeline
from stepvar.errors import UsageError
from stepvar.media.images import read_image
from stepvar.media.metadata import read_metadata

PROMPT = "a large red circle on grass"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_is_generated_again_from_its_file(generate: Any, run: Any, tmp_path: Path, suffix: str) -> None:
    options = ("--keep", "0.5,0.25", "--set", "scope=block", "--temperature", "0.9", "--aspect-ratio", "3:2")
    generate(PROMPT, "a blue star on snow", "--seed", 7, *options, "--out", f"a.{suffix}", "--tile", 8)
    assert run("info", f"a-2.{suffix}").out.rstrip().endswith(f"stepvar generate --from a-2.{suffix}")
    again = run("generate", "--from", f"a-2.{suffix}", "--out", f"again.{suffix}")
    assert again.status == 0, again.err
    assert (tmp_path / f"again.{suffix}").read_bytes() == (tmp_path / f"a-2.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_quality_of_a_file_is_that_of_its_repetition(generate: Any, run: Any, tmp_path: Path, suffix: str) -> None:
    first, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    generate(PROMPT, "--seed", 7, "--out", first.name, "--quality", 40)
    assert read_metadata(first)["quality"] == "40"
    assert run("generate", "--from", first.name, "--out", again.name).status == 0
    assert again.read_bytes() == first.read_bytes()
    assert run("generate", "--from", first.name, "--out", again.name, "--quality", 90, "--force").status == 0
    assert read_metadata(again)["quality"] == "90" and again.stat().st_size > first.stat().st_size
    assert run("generate", "--from", first.name, "--out", "c.png").status == 0
    assert "quality" not in read_metadata(tmp_path / "c.png")


def test_a_damaged_quality_is_refused(generate: Any, run: Any, tmp_path: Path) -> None:
    generate(PROMPT, "--seed", 7, "--out", "a.jpg", "--quality", 40)
    content = (tmp_path / "a.jpg").read_bytes()
    for wrong in (b"4x", b"-1"):
        (tmp_path / "b.jpg").write_bytes(content.replace(b'"quality": "40"', b'"quality": "' + wrong + b'"'))
        assert "the file is damaged" in run("generate", "--from", "b.jpg", "--out", "c.jpg").error()


def test_what_python_saves_is_generated_again(run: Any, shared_model: Path, tmp_path: Path) -> None:
    output = Pipeline.from_pretrained(shared_model)([PROMPT], seed=[3], method="stepvar+drop-guidance")
    output.images[0].save(tmp_path / "pil.png")
    (saved,) = output.save(tmp_path / "own.webp")
    with pytest.raises(UsageError, match="path ''"):
        output.save("")
    for path in (tmp_path / "pil.png", saved):
        assert run("generate", "--from", path, "--out", f"{path.stem}-again.png", "--quiet").status == 0
        again = np.asarray(read_image(tmp_path / f"{path.stem}-again.png"))
        assert np.array_equal(again, np.asarray(output.images[0]))


def test_what_cannot_be_generated_again_says_why(run: Any, shared_model: Path, tmp_path: Path) -> None:
    import torch

    pipe = Pipeline.from_pretrained(shared_model)
    pipe(PROMPT, generator=torch.Generator().manual_seed(1)).save(tmp_path / "stream.png")
    assert "a generator or noise was given" in run("generate", "--from", "stream.png").error()
    pipe(PROMPT, seed=1).save(tmp_path / "own.png")
    for option in (["--seed", "3"], ["a prompt"], ["--keep", "0.5"]):
        assert "the file says all but" in run("generate", "--from", "own.png", *option).error()


def test_a_record_cannot_make_anything_run(run: Any, shared_model: Path, tmp_path: Path) -> None:
    Pipeline.from_pretrained(shared_model)(PROMPT, seed=1).save(tmp_path / "own.png")
    with Image.open(tmp_path / "own.png") as image:
        record = image.text["repeat"]  # type: ignore[attr-defined]
        pixels = image.convert("RGB")
    from stepvar.media.images import save_image

    (tmp_path / "trap.py").write_text("raise SystemExit(77)")
    for old, new in (
        ('"dense"', '"trap:Method"'),
        ('"seed": [1]', '"seed": [1], "callback_on_scale_end": "print"'),
        ('"seed": [1]', '"seed": [1], "nothing": 1'),
        ('"index": 0', '"index": 5'),
        ('"tile": null', '"tile": "x"'),
        ('"call": {', '"call": 3, "other": {'),
        (record, "[" * 100_000),
    ):
        assert old in record
        save_image(pixels, tmp_path / "changed.png", {"repeat": record.replace(old, new), "version": "x"})
        result = run("generate", "--from", "changed.png")
        assert result.status == 2, (old, new)
        result.error()


def test_a_folder_of_several_images_is_not_taken_for_its_first(generate: Any, run: Any, tmp_path: Path) -> None:
    generate(PROMPT, "--seed", 7, "--num-images", 2, "--out", "images/")
    for command in (("info", "images"), ("generate", "--from", "images")):
        said = run(*command).error()
        assert said == "images: holds images and not the frames of a video; name one, such as images/0001.png"
    (tmp_path / "images" / "0002.png").unlink()
    assert run("info", "images").status == 0
