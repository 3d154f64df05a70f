"""Whatever is asked for, a command does it or says in one line why not, and no file is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepvar import Pipeline
from stepvar.cli import main
from stepvar.utils.files import TEMPORARY
from tests.cli.conftest import write_model
from tests.fuzz.lines import command_line

PARTS, LINES = 6, 60
SLOW_PARTS, SLOW_LINES = 20, 4000
KEPT = {"old.png": b"old", "old.txt": b"old", "locked.png": b"locked", "run/run.json": b"{}", "prompts.txt": b"red\n"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("fuzz-model"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Iterator[Path]:
    """A working directory with things in the way; the small model is read once."""
    for name, content in KEPT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "locked.png").chmod(0o444)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a red circle on sand"}\n{"prompt": 3}\n')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "link.png").symlink_to("target.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)
    pipe, read = Pipeline.from_pretrained(model), Pipeline.from_pretrained

    def from_pretrained(name: Any, *rest: Any, **more: Any) -> Pipeline:
        plain = str(name) == str(model) and str(more.get("dtype", "")).endswith("float32")
        return pipe if plain and rest == (None,) else read(name, *rest, **more)

    monkeypatch.setattr(Pipeline, "from_pretrained", from_pretrained)
    yield tmp_path


def check_line(arguments: list[str], capture: Callable[[], Any], place: Path) -> None:
    status = main(arguments)
    out, err = capture()
    assert status in (0, 1, 2), arguments
    assert "internal error" not in err and "Traceback" not in err, (arguments, err)
    lines = err.splitlines()
    assert all(line.startswith("stepvar: ") and line.isprintable() for line in lines), (arguments, err)
    assert sum(line.startswith("stepvar: error: ") for line in lines) == (status != 0), (arguments, err)
    assert "\x1b" not in out, arguments
    assert not list(place.rglob(f"{TEMPORARY}*")), arguments
    if "--force" not in arguments:
        assert all((place / name).read_bytes() == content for name, content in KEPT.items()), arguments
    assert (place / "link.png").is_symlink() and (place / "pipe.png").is_fifo(), arguments


@pytest.mark.parametrize("part", range(PARTS))
def test_command_lines_end_in_a_result_or_in_one_line(
    part: int, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(part * LINES, (part + 1) * LINES):
        check_line(command_line(number, model), capsys.readouterr, place)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(SLOW_PARTS))
def test_many_command_lines(part: int, model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, count = 10_000 + part * SLOW_LINES // SLOW_PARTS, SLOW_LINES // SLOW_PARTS
    for number in range(first, first + count):
        check_line(command_line(number, model), capsys.readouterr, place)
