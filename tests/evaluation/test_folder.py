"""A run's folder survives interruptions."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepvar.errors import OutputError, UsageError
from stepvar.evaluation.candidates import with_baselines
from stepvar.evaluation.folder import RunFolder, check_labels, reading_run, slug
from stepvar.methods import StepVAR


def row(prompt: str, **more: Any) -> dict[str, Any]:
    return {"method": "dense", "prompt": prompt, "seed": 0, **more}


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {"model": "tiny", "seeds": (0, 1)}, {"machine": "one"})
    folder.add([row("a", psnr=30.0)])
    folder.add_timing([{"method": "dense", "round": 0}])
    again = RunFolder.open(tmp_path / "run", {"model": "tiny", "seeds": [0, 1]}, {"machine": "other"})
    assert again.rows == {("dense", "a", 0): row("a", psnr=30.0)} and again.timing == folder.timing
    assert again.info == {"machine": "one"} and again.next_round == 1


def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    folder.add([row("a")])
    manifest = tmp_path / "run" / "manifest.jsonl"
    with manifest.open("a") as file:
        file.write('{"method":"dense","prom')
    again = RunFolder.read(tmp_path / "run")
    assert list(again.rows) == [("dense", "a", 0)]
    again.add([row("b")])
    assert list(RunFolder.read(tmp_path / "run").rows) == [("dense", "a", 0), ("dense", "b", 0)]
    assert manifest.read_text().count("\n") == 2 and "prom{" not in manifest.read_text()


def test_a_row_that_lacks_only_its_newline_is_not_lost(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    folder.add([row("a"), row("b")])
    manifest = tmp_path / "run" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().rstrip("\n"))
    again = RunFolder.read(tmp_path / "run")
    again.add([row("c")])
    assert list(again.rows) == list(RunFolder.read(tmp_path / "run").rows)
    assert [prompt for _, prompt, _ in again.rows] == ["a", "b", "c"]


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    (tmp_path / "run" / "manifest.jsonl").write_text('{"method":\n{"method":"dense","prompt":"a","seed":0}\n')
    with pytest.raises(UsageError, match="line 1 is damaged"):
        RunFolder.read(folder.path)


def test_only_the_settings_that_differ_are_named(tmp_path: Path) -> None:
    def settings(power: float, *others: str, **more: int) -> dict[str, Any]:
        labels = {
            "my:Contrast": f"Contrast(keep=0.5, power={power}, scope='stack')",
            **dict.fromkeys(others, "Dense()"),
        }
        methods = [{"label": label, "settings": text, "resampled": 0} for label, text in labels.items()]
        return {"model": "tiny", "methods": methods, **more}

    RunFolder.open(tmp_path / "run", settings(3.0))
    for other, said in (
        (settings(2.0), r"\(my:Contrast power: 3\.0 there, 2\.0 here\); continue"),
        (settings(3.0, "dense"), r"\(dense: nothing there, given here\); continue"),
        (settings(2.0, a=1, b=2, c=3), r"b: nothing there, 2 here; and 1 more\); continue"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            RunFolder.open(tmp_path / "run", other)
        assert len(str(caught.value).removeprefix(str(tmp_path))) < 250


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", {"model": "tiny"})
    with pytest.raises(UsageError, match=r"other settings \(model: 'tiny' there, 'large' here\); "):
        RunFolder.open(tmp_path / "run", {"model": "large"})
    with pytest.raises(UsageError, match="holds no evaluation"):
        RunFolder.read(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(OutputError, match="exists and holds no evaluation"):
        RunFolder.open(tmp_path / "other", {})
    with pytest.raises(UsageError, match="holds no evaluation"):
        RunFolder.read(tmp_path / "nowhere")


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {})
    with pytest.raises(ValueError):
        folder.add([row("a", psnr=float("inf"))])


def test_labels_as_folders() -> None:
    assert slug("stepvar keep=0.5,0.3") == "stepvar_keep=0.5,0.3"
    assert slug("../odd/name") == ".._odd_name" and slug("///") == "_"


def test_a_run_that_was_stopped_in_its_first_instants_begins_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for made in ((), (".lock",), (".lock", ".stepvar-x/run.json")):
        run.mkdir()
        for name in made:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).touch()
        folder = RunFolder.open(run, {"model": "tiny"})
        folder.add([row("a")])
        assert sorted(path.name for path in run.iterdir()) == [".lock", "images", "manifest.jsonl", "run.json"]
        del folder
        shutil.rmtree(run)


def test_a_full_disk_at_the_beginning_leaves_a_folder_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match="No space left"):
            RunFolder.open(tmp_path / "run", {"model": "tiny"})
    assert RunFolder.open(tmp_path / "run", {"model": "tiny"}).rows == {}


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {"model": "tiny"})
    code = (
        "import sys; from pathlib import Path; from stepvar.evaluation.folder import RunFolder\n"
        "try: RunFolder.open(Path(sys.argv[1]), {'model': 'tiny'})\n"
        "except OSError as error: print(error)\n"
        "else: print('open')"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    RunFolder.open(folder.path, {"model": "tiny"})  # this process may
    assert "another process is writing it" in subprocess.run(command, capture_output=True, text=True).stdout
    folder.lock = None
    del folder
    gc.collect()
    assert subprocess.run(command, capture_output=True, text=True).stdout == "open\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "[]", "holds a list"),
        ("run.json", "{", "cannot be read"),
        ("run.json", '{"methods": 3}', "methods=3 must be list"),
        ("run.json", '{"methods": [{}]}', "without a label"),
        ("run.json", '{"prompts": {"count": "x"}}', "count='x' must be int"),
        ("run.json", "[" * 100_000, "nested too deeply"),
        ("manifest.jsonl", "3\n\n", "line 1 is damaged"),
        ("manifest.jsonl", '{"method": "dense"}\n\n', "needs method, prompt, seed"),
        ("manifest.jsonl", '{"method": [], "prompt": "a", "seed": 0}\n\n', "must be str"),
        ("manifest.jsonl", '{"method": "d", "prompt": "a", "seed": 0, "psnr": "x"}\n\n', "psnr='x'"),
        ("manifest.jsonl", '{"method": "d", "prompt": "a", "seed": 0, "right": {"x": []}}\n\n', "right holds"),
        ("manifest.jsonl", '{"method": "d", "prompt": "a", "seed": 0, "image": "../x.png"}\n\n', "not in the folder"),
        ("timing.jsonl", '{"method": "dense", "round": "x"}\n\n', "round='x'"),
        ("timing.jsonl", "\xff", "UTF-8"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = RunFolder.open(tmp_path / "run", {"model": "tiny"})
    (folder.path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=name) as caught:
        RunFolder.read(folder.path)
    assert said in str(caught.value)


def test_figures_that_do_not_fit_together_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not fit together"), reading_run(tmp_path):
        raise KeyError("loop")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_kept_out(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from stepvar.evaluation.folder import RunFolder\n"
        "folder = RunFolder.open(Path(sys.argv[1]), {})\n"
        "child = os.fork()\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "try: RunFolder.open(Path(sys.argv[1]), {})\n"
        "except OSError as error: print(error, flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0 and "another process is writing it" in done.stdout


def test_labels_that_are_one_folder_are_refused() -> None:
    check_labels(["keep 0.3", "keep 0.30", "dense", "dense"])
    for other in ("keep_0.3", "Keep 0.3"):
        with pytest.raises(UsageError, match=f"'keep 0.3' and '{other}': both"):
            with_baselines([("keep 0.3", StepVAR()), (other, StepVAR(keep=0.3))])
