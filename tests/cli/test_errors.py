"""Everything that can go wrong: one line that names the value and the remedy, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stepvar import Pipeline, StepVAR
from stepvar.errors import OutputError, UsageError

PROMPT = "a large red circle on grass"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nope"], ["nope", "scenes", "folder"]),
        (["--method", "nope"], ["nope", "stepvar", "skip-last"]),
        (["--set", "nope=1"], ["nope", "keep", "structure_weight"]),
        (["--set", "keep"], ["'keep'", "name=value"]),
        (["--set", "last=1.5"], ["last", "'1.5'", "whole number"]),
        (["--set", "scope=tree"], ["scope", "'tree'", "stack, block"]),
        (["--set", "keep="], ["keep", "''", "number"]),
        (["--method", "dense", "--keep", "0.5"], ["keep", "dense", "no settings"]),
        (["--method", "skip-last", "--set", "count=7"], ["count=7", "7 scales"]),
        (["--nope"], ["--nope", "stepvar generate --help"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--seed", "-1"], ["seed=-1", "from 0 to"]),
        (["--keep", "0"], ["keep=0", "above 0"]),
        (["--keep", "1.5"], ["keep=1.5", "at most 1"]),
        (["--keep", "-1"], ["keep=-1"]),
        (["--keep", "nan"], ["keep=nan"]),
        (["--keep", "half"], ["'half'", "number"]),
        (["--keep", "0.5,2"], ["keep=2"]),
        (["--last", "0"], ["last=0", "from 1 to"]),
        (["--temperature", "0"], ["temperature=0"]),
        (["--temperature", "1,1"], ["temperature", "2 values", "7 scales"]),
        (["--guidance-scale", "nan"], ["guidance_scale=nan"]),
        (["--top-k", "-2"], ["top_k=-2"]),
        (["--top-p", "1"], ["top_p=1"]),
        (["--aspect-ratio", "3:0"], ["3:0", "3:2"]),
        (["--aspect-ratio", "wide"], ["wide", "3:2"]),
        (["--resolution", "9M"], ["9M", "0.25M"]),
        (["--num-images", "0"], ["num-images=0", "from 1 to"]),
        (["--device", "tpu"], ["tpu", "cpu, cuda, mps"]),
        (["--device", "cuda:99"], ["cuda:99", "try cpu"]),
        (["--dtype", "int8"], ["int8", "float32"]),
        (["--compare", "--runs", "0"], ["runs=0", "from 1 to"]),
        (["--compare", "--preview", "p.png"], ["preview", "compare"]),
        (["--out", "scene.bmp"], ["scene.bmp", ".png"]),
        (["--out", "a.png", "--report", "a.png"], ["different"]),
    ],
)
def test_wrong_options(run, shared_model: Path, arguments: list[str], said: list[str], tmp_path: Path) -> None:
    model = [] if "--model" in arguments else ["--model", shared_model]
    result = run("generate", PROMPT, *model, *arguments)
    assert result.status == 2
    assert all(part in result.error() for part in said), result.err
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate"], ["PROMPT", "--help"]),
        (["paint"], ["paint", "stepvar --help"]),
        (["--nope"], ["--nope", "stepvar --help"]),
        (["info", "gone.png"], ["gone.png", "no such file"]),
        (["info", "."], ["folder"]),
        (["info"], ["FILE", "stepvar info --help"]),
        (["methods", "extra"], ["extra"]),
    ],
)
def test_wrong_commands(run, arguments: list[str], said: list[str]) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert all(part.lower() in result.error().lower() for part in said), result.err


@pytest.mark.parametrize(
    ("prompt", "said"), [("", "empty"), (" \n", "empty"), ("red " * 40, "40 words"), ("hello", "hello")]
)
def test_wrong_prompts(run, shared_model: Path, prompt: str, said: str) -> None:
    result = run("generate", prompt, "--model", shared_model)
    assert result.status == 2 and said in result.error()


@pytest.mark.parametrize("prompt", [None, 3, [], [PROMPT, 3], {"a": 1}, b"a red circle"])
def test_prompts_that_are_no_strings(shared_model: Path, prompt: object) -> None:
    with pytest.raises(UsageError, match="prompt"):
        Pipeline.from_pretrained(shared_model)(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0, 1.5, -1, float("nan"), (), (0.5, 0)])
def test_keep_out_of_range_in_python(keep: object) -> None:
    with pytest.raises(UsageError, match="keep"):
        StepVAR(keep=keep)  # type: ignore[arg-type]


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _reshape(path: Path) -> None:
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    save_file(weights | {name: weights[name][:-1].contiguous()}, path)


def _drop(path: Path) -> None:
    weights = load_file(path)
    save_file(dict(list(weights.items())[1:]), path)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [(_remove, "missing"), (_cut, "truncated"), (_reshape, "misshapen"), (_drop, "1 missing")],
)
def test_damaged_weights(run, model_folder: Path, part: str, damage, said: str) -> None:
    path = model_folder / f"{part}.safetensors"
    damage(path)
    result = run("generate", PROMPT, "--model", model_folder)
    assert result.status == 1
    assert path.name in result.error() and said in result.error()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "missing"),
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ('{"family": "other"}', "family"),
        ('{"family": "infinity"}', "model"),
        ('{"family": "infinity", "model": 3, "text_encoder": {}}', "model=3 must be dict"),
        ('{"family": "infinity", "model": {"depht": 3}}', "depht"),
        ('{"family": "infinity", "model": {"depth": 2, "width": 64, "heads": 3}}', "config.json"),
        ("\xff\xfe", "no text in UTF-8"),
    ],
)
def test_damaged_configuration(run, model_folder: Path, text: str | None, said: str) -> None:
    path = model_folder / "config.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    result = run("generate", PROMPT, "--model", model_folder)
    assert result.status == 1
    assert "config.json" in result.error() and said in result.error()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a command that gets as far as loading a model."""

    def load(name: str, *_: object, **__: object) -> Pipeline:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("option", ["--out", "--report", "--preview"])
def test_bad_places_fail_before_the_work(run, tmp_path: Path, monkeypatch, option: str) -> None:
    (tmp_path / "taken.png").mkdir()
    missing = run("generate", PROMPT, option, "gone/x.png")
    assert missing.status == 1 and "folder gone does not exist" in missing.error()
    folder = run("generate", PROMPT, option, "taken.png")
    assert folder.status == 1 and "is a folder" in folder.error()
    long = run("generate", PROMPT, option, "x" * 300 + ".png")
    assert long.status == 1 and "at most 255" in long.error()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    locked = run("generate", PROMPT, option, tmp_path / "x.png")
    assert locked.status == 1 and "cannot be written" in locked.error()


@pytest.mark.usefixtures("no_model")
def test_demo_checks_both_of_its_files_before_the_work(run, tmp_path: Path) -> None:
    (tmp_path / "demo.json").mkdir()
    assert "demo.json: is a folder" in run("demo", "--out", "demo.png").error()


def test_a_full_disk_leaves_nothing(run, shared_model: Path, tmp_path: Path, monkeypatch) -> None:
    def save(image: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half a pic")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    result = run("generate", PROMPT, "--model", shared_model)
    assert result.status == 1
    assert "scene.png: No space left on device" in result.error()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_keeps_the_old_file(run, shared_model: Path, tmp_path: Path, monkeypatch) -> None:
    def replace(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "scene.png").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", replace)
    assert run("generate", PROMPT, "--model", shared_model, "--out", "scene.png", "--force").status == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing(run, shared_model: Path, tmp_path: Path, monkeypatch) -> None:
    @contextmanager
    def impatient(*_: object) -> Iterator[object]:
        yield _interrupt

    monkeypatch.setattr("stepvar.pipeline.pipeline.scale_bar", impatient)
    result = run("generate", PROMPT, "--model", shared_model, "--report", "report.json", "--preview", "p.png")
    assert (result.status, result.out, result.err) == (130, "", "stepvar: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(run, shared_model: Path, tmp_path: Path, monkeypatch) -> None:
    def save(image: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half a pic")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    assert run("generate", PROMPT, "--model", shared_model).status == 130
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_pipeline_can_generate_again(shared_model: Path) -> None:
    pipe = Pipeline.from_pretrained(shared_model)
    before = pipe(PROMPT, seed=0).images[0]
    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, seed=0, callback_on_scale_end=_interrupt)
    assert pipe(PROMPT, seed=0).images[0].tobytes() == before.tobytes()


@pytest.mark.parametrize("place", [0, 3])
def test_debug_shows_where_it_came_from(run, place: int) -> None:
    arguments = ["generate", PROMPT, "--model", "nope"]
    assert "Traceback" not in run(*arguments).err
    result = run(*arguments[:place], "--debug", *arguments[place:]) if place == 0 else run(*arguments, "--debug")
    assert result.status == 2
    assert result.err.startswith("Traceback") and "find_model" in result.err
    assert result.err.splitlines()[-1].startswith("stepvar: error: model 'nope'")


def test_debug_behind_two_dashes_is_a_prompt(run, shared_model: Path) -> None:
    result = run("generate", "--model", shared_model, "--", "--debug")
    assert result.status == 2 and "prompt '--debug'" in result.error()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("two\nlines"), "internal error: RuntimeError: two lines; run with --debug"),
        (torch.OutOfMemoryError("CUDA"), "out of memory"),
        (MemoryError(), "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
        (OutputError("no place"), "no place"),
    ],
)
def test_other_errors(run, monkeypatch, error: Exception, said: str) -> None:
    def load(name: str, *_: object, **__: object) -> Pipeline:
        raise error

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    result = run("generate", PROMPT)
    assert result.status == 1 and said in result.error()


def test_the_process_exits_with_the_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stepvar", "generate", "--nope"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
