"""Whatever a file holds, reading it gives a result or an error of ours: nothing runs, hangs or is bare."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stepvar.checkpoints import load_model
from stepvar.cli import main
from stepvar.conformance.golden import PACKAGED, find_goldens, read_tensors
from stepvar.errors import StepvarError
from stepvar.evaluation.folder import RunFolder, reading_run
from stepvar.evaluation.prompts import load_prompts
from stepvar.evaluation.report.page import page
from stepvar.evaluation.report.tables import markdown
from stepvar.evaluation.summary import summarise
from stepvar.media.images import read_image, save_image
from stepvar.media.metadata import read_metadata
from stepvar.media.video import Video
from stepvar.pipeline.records import read_record
from tests.checkpoint_writer import write_infinity, write_var
from tests.cli.conftest import write_model
from tests.fuzz.damage import damaged, damaged_json

Read = Callable[[Path], Any]
EACH, SLOW_EACH = 20, 400


def _run(folder: Path) -> None:
    """An evaluation with rows of every kind."""
    run = RunFolder.open(
        folder / "run", {"model": "tiny", "methods": [{"label": "dense", "settings": "", "resampled": 0}]}
    )
    image = folder / "run" / "images" / "dense" / "a" / "0000.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(image)
    rows = [
        {"method": label, "prompt": "a", "seed": 0, "text": "a", "image": "images/dense/a/0000.png", "psnr": 20.0}
        | {"right": {"colour": True}, "scores": {"clip": 0.5}}
        for label in ("dense", "other")
    ]
    run.add(rows)
    cost = {
        "loop": 1.0,
        "decode": 0.1,
        "total": 1.1,
        "kept": 1,
        "tokens": 2,
        "samples": 1,
        "memory": None,
        "flops": 5.0,
    }
    run.add_timing([{"method": label, "round": 0, **cost} for label in ("dense", "other")])


def _report(folder: Path) -> None:
    with reading_run(folder / "run"):
        results = summarise(run := RunFolder.read(folder / "run"))
        page(results, run), markdown(results)


def _metadata(path: Path) -> None:
    read_record(read_metadata(path), str(path))


def _goldens(folder: Path) -> None:
    for golden in find_goldens([folder / "golden.json"]):
        read_tensors(golden)


def write_files(folder: Path) -> dict[str, tuple[Path, Read, bool]]:
    """Good files of every kind: the file, what reads it, and whether it is JSON."""
    own, var, infinity = write_model(folder / "own"), write_var(folder / "var"), write_infinity(folder / "infinity")
    shards = folder / "shards"
    shards.mkdir()
    state = torch.load(var.transformer)
    save_file(state, shards / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model-1.safetensors")}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in (var.tokenizer, var.folder / "config.json"):
        shutil.copy(file, folder)
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    texts = {
        "prompt": "a",
        "version": "x",
        "repeat": '{"pipeline": {}, "call": {"seed": [1]}, "method": [], "index": 0}',
    }
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    for suffix in ("png", "jpg", "webp"):
        save_image(Image.fromarray(pixels[0]), folder / f"image.{suffix}", texts)
    for name in ("video.gif", "video.mp4", "frames"):
        Video(pixels, 8).save(folder / name, metadata=texts)
    (folder / "rows.jsonl").write_text('{"prompt": "a", "tag": "b"}\n{"prompt": "c"}\n')
    _run(folder)
    golden = next(path for path in sorted(PACKAGED.glob("*.json")) if path.with_suffix(".safetensors").is_file())
    for suffix in (".json", ".safetensors"):
        shutil.copy(golden.with_suffix(suffix), folder / f"golden{suffix}")

    def whole(model: Path) -> Read:
        return lambda path: load_model(model)

    run = folder / "run"
    found = {
        "config": (own / "config.json", whole(own), True),
        "weights": (own / "transformer.safetensors", whole(own), False),
        "release": (var.transformer, whole(var.folder), False),
        "training": (infinity.transformer, whole(infinity.folder), False),
        "legacy": (folder / "legacy.pth", whole(folder / "legacy.pth"), False),
        "index": (shards / "model.safetensors.index.json", whole(shards), True),
        "png": (folder / "image.png", read_image, False),
        "jpg": (folder / "image.jpg", read_image, False),
        "webp": (folder / "image.webp", read_image, False),
        "texts": (folder / "image.png", _metadata, False),
        "exif": (folder / "image.jpg", _metadata, False),
        "gif": (folder / "video.gif", Video.read, False),
        "mp4": (folder / "video.mp4", Video.read, False),
        "frames": (folder / "frames" / "frame_0001.png", lambda path: Video.read(path.parent), False),
        "prompts": (folder / "rows.jsonl", lambda path: load_prompts(str(path)), False),
        "run": (run / "run.json", lambda _: _report(folder), True),
        "manifest": (run / "manifest.jsonl", lambda _: _report(folder), False),
        "timing": (run / "timing.jsonl", lambda _: _report(folder), False),
        "golden": (folder / "golden.json", lambda _: _goldens(folder), True),
        "tensors": (folder / "golden.safetensors", lambda _: _goldens(folder), False),
    }
    for kind, (path, read, _) in found.items():
        if kind not in ("texts", "exif"):  # their record names nothing
            read(path)
    return found


KINDS = (
    *(
        "config",
        "weights",
        "release",
        "training",
        "legacy",
        "index",
        "png",
        "jpg",
        "webp",
        "texts",
        "exif",
        "gif",
        "mp4",
    ),
    *("frames", "prompts", "run", "manifest", "timing", "golden", "tensors"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Read, bool]]:
    return write_files(tmp_path_factory.mktemp("damaged"))


def check_file(path: Path, read: Read, changed: bytes, whole: bytes) -> bool:
    """Whether it was refused; what is not an error of ours fails the test."""
    path.write_bytes(changed)
    try:
        read(path)
    except StepvarError as error:
        assert str(error).isprintable() and len(str(error)) <= 1600 and "weights_only" not in str(error), str(error)
        return True
    finally:
        path.write_bytes(whole)
    return False


def check_kind(files: dict[str, tuple[Path, Read, bool]], kind: str, seeds: range) -> None:
    path, read, is_json = files[kind]
    whole = path.read_bytes()
    refused = 0
    for seed in seeds:
        chance = random.Random(f"{kind} {seed}")
        change = damaged_json if is_json and chance.random() < 0.7 else damaged
        refused += check_file(path, read, change(whole, chance), whole)
    assert refused > len(seeds) // 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(files: dict[str, tuple[Path, Read, bool]], kind: str) -> None:
    check_kind(files, kind, range(EACH))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(files: dict[str, tuple[Path, Read, bool]], kind: str) -> None:
    check_kind(files, kind, range(1000, 1000 + SLOW_EACH))


@pytest.mark.parametrize("name", ["run.json", "manifest.jsonl"])
def test_a_report_of_damaged_files_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    _run(tmp_path)
    (tmp_path / "run" / name).write_text('{"methods": [3]}\n\n')
    assert main(["report", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
