"""Batch jobs: what workers make of rows; with the real Ray, jobs that are killed, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stepvar.cli.batch
from stepvar import Pipeline
from stepvar.cli.app import main
from stepvar.errors import UsageError
from stepvar.media.metadata import read_metadata
from stepvar.methods import make_method
from stepvar.serving.batch.folder import BatchFolder
from stepvar.serving.batch.rows import Row
from stepvar.serving.batch.worker import Actor, Generator, Setup, pack_row, unpack_result

with_ray = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[batch]'"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PROMPTS = ("a red circle on grass", "a blue square on sand", "a green square on sand", "a yellow square on sand")
PATIENCE = 300.0


def setup(**settings: Any) -> Setup:
    return Setup({"name": "scenes"}, make_method("stepvar"), settings, ".png", threads=1)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("scenes")


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


def manifest(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a manifest, also of one that is being written."""
    path = out / "manifest.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(("method", "counts"), [("stepvar", [2]), ("sparsevar:threshold", [1, 1])])
def test_what_a_method_decides_by_the_image_it_decides_for_each_row(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, method: str, counts: list[int]
) -> None:
    calls: list[int] = []

    def call(self: Pipeline, **given: Any) -> None:
        calls.append(len(given["prompt"]))
        raise UsageError("enough")

    monkeypatch.setattr(Pipeline, "__call__", call)
    rows = [Row(str(seed), "line 1", PROMPTS[0], seed) for seed in range(2)]
    Generator(replace(setup(), method=make_method(method)), pipe).run(rows)
    assert calls[: len(counts)] == counts


def test_a_bad_row_alone_fails_and_the_others_are_what_the_pipeline_generates(pipe: Pipeline, tmp_path: Path) -> None:
    rows = [Row("a", "line 1", "qwxyz", 4), Row("b", "line 2", PROMPTS[0], 3, guidance_scale=1.0)]
    bad, found = Generator(setup(), pipe).run(rows)
    assert not bad.data
    assert "knows none of its words" in bad.facts["error"]
    path = tmp_path / "b.png"
    path.write_bytes(found.data)
    alone = pipe(PROMPTS[0], seed=3, guidance_scale=1.0, method="stepvar", progress=False)
    assert np.array_equal(pixels(path), np.asarray(alone.images[0]))
    assert read_metadata(path)["prompt"] == PROMPTS[0]
    assert found.facts["width"] == found.facts["height"] == 256


@pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")
def test_words_that_the_model_does_not_know_are_in_the_line_of_their_row(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda **given: pipe)
    rows = [Row(str(place), "line 1", prompt) for place, prompt in enumerate((PROMPTS[0], f"{PROMPTS[1]} by Vermeer"))]
    folder = BatchFolder.open(tmp_path / "out", {}, ".png")
    for _ in range(2):  # the second time its features are those that were kept
        found = Actor(setup())({"row": np.array([pack_row(row) for row in rows], dtype=object)})
        for result, data in zip(found["result"], found["data"], strict=True):
            folder.add(unpack_result({"result": result, "data": data}))
        known, unknown = manifest(tmp_path / "out")[-2:]
        assert "warnings" not in known
        assert unknown["warnings"] == ["this model knows only the words of its vocabulary and ignores by, vermeer"]


def test_what_all_rows_share_is_checked_before_the_first_and_ends_the_job(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda **given: pipe)
    for given, error in (({"guidance_schedule": "x"}, "guidance_schedule='x'"), ({"resolution": "9M"}, "resolution")):
        found = Actor(setup(**given))({"row": ["{}"]})
        with pytest.raises(UsageError, match=error):
            unpack_result({name: column[0] for name, column in found.items()})


def test_an_actor_takes_and_gives_columns(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda **given: pipe)
    row = Row("a", "line 1", "qwxyz", 3, other={"who": "me"})
    found = Actor(setup())({"row": np.array([pack_row(row)], dtype=object)})
    (result,) = (unpack_result({name: column[0] for name, column in found.items()}) for _ in range(1))
    assert result.row == row
    assert result.facts["error"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--gpus", "2", "--workers", "2"], "each GPU has one worker"),
        (["--format", "mp4"], "format='mp4': must be one of png, jpg, webp, parquet"),
        (["--batch-size", "0"], "batch-size"),
        (["--model", "nothing"], "model 'nothing': unknown"),
        (["--model", "HiDream-ai/VAREdit"], "changes images, and rows have none"),
    ],
)
def test_wrong_options_end_before_any_work(
    arguments: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert main(["batch", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "batch jobs: needs the package ray; pip install '.[batch]'" in capsys.readouterr().err


@pytest.mark.parametrize("workers, threads", [(1, 4), (2, 2), (5, 1)])
def test_workers_share_the_threads_that_one_generation_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, threads: int
) -> None:
    found: list[Setup] = []
    monkeypatch.setattr(stepvar.cli.batch, "_run", lambda file, out, setup, *rest: found.append(setup))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # as OMP_NUM_THREADS says
    assert main(["batch", "rows.jsonl", "--out", str(tmp_path), "--workers", str(workers)]) == 0
    assert [one.threads for one in found] == [threads]


def test_a_quality_that_would_do_nothing_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for more in ([], ["--format", "parquet"]):
        assert main(["batch", "rows.jsonl", "--out", str(tmp_path), "--quality", "50", *more]) == 2
        assert "quality=50: PNG has none" in capsys.readouterr().err


# With the real Ray.


def command(rows: Path, out: Path, *more: str) -> list[str]:
    options = ["--model", "scenes", "--method", "stepvar"]
    return [sys.executable, "-m", "stepvar", "batch", str(rows), "--out", str(out), *options, *more]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_rows(process: subprocess.Popen[str], out: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(manifest(out)) < count:
        assert process.poll() is None, "the job ended by itself"
        assert time.monotonic() < end, "the job took too long"
        time.sleep(0.1)


def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)


def write_rows(path: Path, prompts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
class TestStopped:
    pytestmark = with_ray

    def test_a_job_that_was_stopped_goes_on_without_loss_or_doubles(self, number: int, tmp_path: Path) -> None:
        rows, out = write_rows(tmp_path / "rows.jsonl", PROMPTS), tmp_path / "out"
        with started(command(rows, out)) as process:
            wait_for_rows(process, out, 1)
            os.kill(process.pid, number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        assert number == signal.SIGKILL or "stepvar: interrupted" in said
        before = manifest(out)
        assert 1 <= len(before) < len(PROMPTS)
        files = {line["file"]: (out / line["file"]).stat().st_mtime_ns for line in before}

        finished = run(command(rows, out, "--quiet"))
        assert finished.returncode == 0, finished.stderr
        lines = manifest(out)
        assert sorted(line["prompt"] for line in lines) == sorted(PROMPTS)
        assert all((out / file).stat().st_mtime_ns == time_ for file, time_ in files.items())
        assert {path.name for path in (out / "images").iterdir()} == {Path(line["file"]).name for line in lines}
        again = run(command(rows, out))
        assert "4 rows: 0 done, 0 failed, 4 done before" in again.stdout
        other = run(command(rows, out, "--keep", "0.3"))
        assert other.returncode == 2
        assert "other settings (method_settings keep: 0.5 there, 0.3 here)" in other.stderr


class TestWhole:
    pytestmark = with_ray

    @pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")
    def test_pictures_are_those_of_generate_and_bad_rows_are_reported(self, tmp_path: Path) -> None:
        rows, out = tmp_path / "rows.csv", tmp_path / "out"
        text = f"prompt,seed,id\n{PROMPTS[0]},3,one\nqwxyz,4,none\n{PROMPTS[1]} zebra,,two\n{PROMPTS[1]},x,bad\n"
        rows.write_text(text, encoding="utf-8")
        finished = run(command(rows, out, "--workers", "2"))
        assert finished.returncode == 1
        assert "4 rows: 2 done, 2 failed" in finished.stdout
        assert "\nthe first that failed: line 5: seed='x'" in finished.stdout
        lines = {line["id"]: line for line in manifest(out)}
        assert {name: line["status"] for name, line in lines.items()} == {
            "one": "done",
            "two": "done",
            "none": "failed",
            "bad": "failed",
        }
        assert "knows none of its words" in lines["none"]["error"]
        assert "seed='x'" in lines["bad"]["error"]
        assert "ignores zebra" in lines["two"]["warnings"][0] and "warnings" not in lines["one"]
        for name in ("one", "two"):
            line, path = lines[name], tmp_path / f"{name}.png"
            given = [line["prompt"], "--seed", str(line["seed"]), "--model", "scenes", "--method", "stepvar"]
            assert main(["generate", *given, "--out", str(path), "--quiet"]) == 0
            assert np.array_equal(pixels(path), pixels(out / line["file"]))

    def test_parquet_in_and_out_whatever_the_number_of_workers(self, tmp_path: Path) -> None:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"prompt": list(PROMPTS)}), tmp_path / "rows.parquet")
        found = []
        for workers, size in (("1", "2"), ("2", "1")):
            out = tmp_path / workers
            more = ("--format", "parquet", "--workers", workers, "--batch-size", size, "--quiet")
            finished = run(command(tmp_path / "rows.parquet", out, *more))
            assert finished.returncode == 0, finished.stderr
            rows = parquet.read_table(out / "part-00001.parquet").to_pylist()
            found.append({row["id"]: (row["prompt"], row["seed"], row["bytes"]) for row in rows})
        assert found[0].keys() == found[1].keys()
        for name, (prompt, seed, data) in found[0].items():
            assert found[1][name][:2] == (prompt, seed)
            images = [np.asarray(Image.open(BytesIO(one))) for one in (data, found[1][name][2])]
            assert np.abs(images[0].astype(int) - images[1]).max() <= 1  # of another batch size: the last bits
