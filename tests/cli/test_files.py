"""Where results go: no file is lost, and none is half-written."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepvar import Pipeline
from stepvar.cli import main
from stepvar.errors import OutputError, UsageError
from stepvar.media.images import read_image
from stepvar.media.metadata import read_metadata
from stepvar.utils.files import TEMPORARY, atomic_folder, keeping_files, write_text
from stepvar.utils.outputs import Outputs

PROMPT = "a large red circle on grass"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a command that gets as far as loading a model."""

    def load(*_: object, **__: object) -> Pipeline:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "a.png", "--report", "d/../a.png"],
        ["--out", "a.png", "--report", "A.PNG"],
        ["--out", "a.png", "--report", "link.png"],
        ["--out", "link.png", "--report", "a.png"],
        ["a blue star", "--out", "a.png", "--report", "a-1.png"],
        ["--num-images", "2", "--out", "a.png", "--preview", "a-2.png"],
        ["--out", "old.png", "--report", "hard.png", "--force"],
        ["--out", "d/", "--report", "d/0001.png"],
    ],
    ids=" ".join,
)
def test_two_results_in_one_file_are_refused(generate: Any, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "old.png").touch()
    os.link(tmp_path / "old.png", tmp_path / "hard.png")
    result = generate(PROMPT, *arguments)
    assert result.status == 2 and "give different files" in result.error()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("option", ["--out", "--report", "--preview"])
def test_files_that_are_there_stay(generate: Any, tmp_path: Path, option: str) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    result = generate(PROMPT, option, "a.png")
    assert result.status == 1 and "a.png: exists; replace it with --force" in result.error()
    assert generate(PROMPT, option, "a.png", "--force").err.count("the model was loaded") == 1


def test_names_that_nobody_gave_are_free_ones(generate: Any, tmp_path: Path) -> None:
    for name in ("scene.png", "scene-2.png"):
        assert name in generate(PROMPT, "--seed", 1).out
    assert "scene-2-1.png" in generate(PROMPT, "--num-images", 2).out
    assert len(list(tmp_path.iterdir())) == 4


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Files that another process writes while the model works."""
    load = Pipeline.from_pretrained

    def arrange(*files: Path) -> None:
        def slow(*given: Any, **more: Any) -> Pipeline:
            for file in files:
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(b"theirs")
            return load(*given, **more)

        monkeypatch.setattr(Pipeline, "from_pretrained", slow)

    return arrange


@pytest.mark.parametrize("option", ["--out", "--report", "--preview"])
def test_a_file_that_appears_during_the_work_stays(generate: Any, tmp_path: Path, meanwhile: Any, option: str) -> None:
    meanwhile(tmp_path / "a.png")
    result = generate(PROMPT, option, "a.png", "-q")
    assert result.status == 1 and "a.png: appeared during the work" in result.error() and "--force" in result.err
    assert (tmp_path / "a.png").read_bytes() == b"theirs" and not list(tmp_path.glob(f"{TEMPORARY}*"))
    (tmp_path / "a.png").unlink()
    assert generate(PROMPT, option, "a.png", "-q", "--force").status == 0
    assert (tmp_path / "a.png").read_bytes() != b"theirs"


def test_names_of_its_own_move_on_when_another_process_takes_them(
    generate: Any, tmp_path: Path, meanwhile: Any
) -> None:
    theirs = [tmp_path / "scene.png", tmp_path / "d" / "0001.png", tmp_path / "d" / "0002.png"]
    meanwhile(*theirs)
    assert generate(PROMPT, "a blue star", "--out", "d", "-q").status == 0
    (tmp_path / "scene.png").unlink()
    assert "scene-2.png" in generate(PROMPT).out
    assert all(path.read_bytes() == b"theirs" for path in theirs)
    assert sorted(path.stem for path in (tmp_path / "d").iterdir()) == ["0001", "0002", "0003", "0004"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", PROMPT, "--out", ""],
        ["generate", PROMPT, "--out="],
        ["generate", PROMPT, "--report", ""],
        ["generate", "--from", ""],
        ["generate", "--prompts", ""],
        ["info", ""],
        ["demo", "--out", ""],
        ["eval", "--out", ""],
        ["eval", "--out", "run", "--prompts", ""],
        ["report", ""],
        ["convert", "scenes", ""],
        ["verify", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_one_that_was_left_out(run: Any, tmp_path: Path, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.status == 2 and "is empty" in result.error() and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("file", ["new", "NEW", "new/r.json", "./new/sub/../r.json"])
@pytest.mark.parametrize("option", ["--report", "--preview"])
def test_a_report_in_a_folder_that_is_still_to_be_made_is_refused(
    generate: Any, tmp_path: Path, option: str, file: str
) -> None:
    result = generate(PROMPT, "--out", "new", option, file)
    assert result.status == 2 and "lies in the folder new" in result.error() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_what_is_new_takes_no_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with keeping_files():
        write_text(tmp_path / "a", "one")
        with pytest.raises(OutputError, match="appeared"):
            write_text(tmp_path / "a", "two")
    with pytest.raises(OutputError, match="appeared"), atomic_folder(tmp_path / "f") as made:
        (made / "file").touch()
        (tmp_path / "f").mkdir()
    assert (tmp_path / "a").read_text() == "one" and [p.name for p in sorted(tmp_path.iterdir())] == ["a", "f"]
    write_text(tmp_path / "a", "three")
    assert (tmp_path / "a").read_text() == "three"


def test_a_folder_is_filled_up(generate: Any, tmp_path: Path) -> None:
    for _ in range(2):
        generate(PROMPT, "a blue star on snow", "--out", "folder", "-q")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [f"000{n}.png" for n in (1, 2, 3, 4)]


def test_prompts_of_a_file_have_the_seeds_of_a_list(generate: Any, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\ufeffa red circle on sand\n\n a blue star on snow \n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a red circle on sand"}\n{"prompt": "a blue star on snow"}\n')
    for file in ("lines.txt", "rows.jsonl"):
        result = generate("--prompts", file, "--seed", 5, "--out", file[:4], "--report", f"{file}.json")
        assert result.status == 0, result.err
        texts = [read_metadata(tmp_path / file[:4] / f"000{n}.png") for n in (1, 2)]
        assert [(one["prompt"], one["seed"]) for one in texts] == [
            ("a red circle on sand", "5"),
            ("a blue star on snow", "6"),
        ]
    assert (tmp_path / "line" / "0002.png").read_bytes() == (tmp_path / "rows" / "0002.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"", "no prompts"), (b"red \xff", "UTF-8"), (b"[" * 100_000, "line 1")],
)
def test_prompt_files_that_cannot_be_read(generate: Any, tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "p.jsonl").write_bytes(content)
    result = generate("--prompts", "p.jsonl")
    assert result.status == 2 and "p.jsonl" in result.error() and said in result.error()
    assert "device or a pipe" in generate("--prompts", "/dev/zero").error()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("p.txt", f"{PROMPT}\n\n# comment\n", 3),
        ("p.jsonl", f'{{"prompt": "{PROMPT}"}}\n\n{{"prompt": "hello"}}\n', 3),
    ],
)
def test_a_bad_line_is_named_before_the_first_image(
    generate: Any, tmp_path: Path, name: str, content: str, line: int
) -> None:
    (tmp_path / name).write_text(content)
    result = generate("--prompts", name, "--out", "images/")
    assert result.status == 2 and result.error().startswith(f"{name}, line {line}: prompt ")
    assert "knows none of its words" in result.error() and not (tmp_path / "images").exists()


@pytest.mark.parametrize("out", ["a.png", "images/", "A.PNG"])
def test_a_quality_that_would_do_nothing_is_refused(run: Any, tmp_path: Path, out: str) -> None:
    said = run("generate", PROMPT, "--out", out, "--quality", 40).error()
    assert said == "quality=40: PNG has none; leave it out, or write JPEG, WebP or MP4"
    assert not (tmp_path / out).exists()


def test_links_modes_and_write_protection_are_kept(generate: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target.png", tmp_path / "link.png"
    link.symlink_to(target)
    generate(PROMPT, "--out", "link.png", "-q")  # to a file that is not there yet
    assert link.is_symlink() and read_image(target).size == (32, 32)
    umask = os.umask(0o027)
    try:
        generate(PROMPT, "--out", "new.png", "-q")
        target.chmod(0o600)
        generate(PROMPT, "--out", "link.png", "--force", "-q")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o640
    assert stat.S_IMODE(target.stat().st_mode) == 0o600 and link.is_symlink()
    target.chmod(0o444)
    result = generate(PROMPT, "--out", "link.png", "--force")
    assert result.status == 1 and "write-protected" in result.error()
    assert [path.name for path in tmp_path.rglob(f"{TEMPORARY}*")] == []


def test_devices_are_written_to(generate: Any, tmp_path: Path) -> None:
    assert generate(PROMPT, "--out", "/dev/null", "--report", "/dev/null", "-q").status == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe.png")
    assert "is a pipe" in generate(PROMPT, "--out", "pipe.png").error()
    result = generate(PROMPT, "--out", "/dev/full", "-q")
    assert result.status == 1 and "No space left" in result.error()


@pytest.mark.parametrize("length", [250, 255])
def test_names_of_every_legal_length(generate: Any, tmp_path: Path, length: int) -> None:
    name = "x" * (length - 4) + ".png"
    assert generate(PROMPT, "--out", name, "-q").status == 0 and (tmp_path / name).is_file()


@pytest.mark.usefixtures("no_model")
def test_names_that_numbers_make_too_long_fail_before_the_work(generate: Any) -> None:
    result = generate(PROMPT, "--out", "x" * 250 + ".png", "--num-images", 2)
    assert result.status == 1 and "at most 255" in result.error()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_names_that_stdout_cannot_show(
    shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.chdir(tmp_path)
    assert main(["generate", PROMPT, "--model", str(shared_model), "--out", "bild_\u56fe.png"]) == 0
    assert (tmp_path / "bild_\u56fe.png").is_file() and b"bild_\\u56fe.png" in stream.buffer.getvalue()


def test_prompts_with_stray_bytes_are_generated(generate: Any, tmp_path: Path) -> None:
    result = generate("a red circle \udcff", "--out", "\udcff.png", "--seed", "1")
    assert result.status == 0, result.err
    assert generate(PROMPT, "--from", "x").status == 2
    assert read_metadata(tmp_path / "\udcff.png")["prompt"] == "a red circle \\udcff"


def test_a_full_disk_behind_stdout_is_told(shared_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stepvar", "methods"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("stepvar: error: standard output: No space left")
    assert done.stderr.count("\n") == 1


def test_without_a_console_errors_have_no_place(shared_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["generate", PROMPT, "--model", "nope"]) == 2


def test_outputs_know_their_own_names(tmp_path: Path) -> None:
    outputs = Outputs()
    (tmp_path / "mine.png").touch()
    outputs.claim("own", tmp_path / "mine.png", own=True)
    with pytest.raises(UsageError, match="report and own"):
        outputs.claim("report", tmp_path / "MINE.png")
    with pytest.raises(OutputError, match="cannot hold a null"):
        outputs.claim("report", tmp_path / "a\0b")


def test_folders_get_the_modes_of_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "inner").mkdir()
            for file in (folder / "a", folder / "inner" / "b"):
                file.touch(mode=0o600)
    finally:
        os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert modes == {"a": 0o644, "inner": 0o755, "b": 0o644}


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match="leads back to itself"):
        write_text(tmp_path / "a", "x")
