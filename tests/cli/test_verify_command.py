"""The command that checks an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepvar.conformance.golden import PACKAGED
from stepvar.conformance.results import GROUPS, GoldenResult

REPRODUCES = "yes: this build reproduces the reference implementations on all"
LOW = "(cpu, bfloat16 within wider bounds)"


@pytest.mark.parametrize(
    ("statuses", "status", "last"),
    [
        ("pp", 0, f"{REPRODUCES} 2 goldens {LOW}"),
        ("ps", 0, f"{REPRODUCES} 1 goldens {LOW}; 1 more"),
        ("pf", 1, f"no: 1 of 2 goldens do not agree or cannot be run {LOW}: golden-number-1"),
        ("ss", 1, f"no: nothing was compared {LOW}"),
        ("", 1, f"no: nothing was compared {LOW}"),
    ],
)
def test_last_line_and_status_tell_the_outcome(run, monkeypatch, statuses: str, status: int, last: str) -> None:
    names = {"p": "pass", "f": "fail", "s": "skipped"}
    asked = []

    def verify(*arguments: object) -> list[GoldenResult]:
        asked.append(arguments)
        errors = dict.fromkeys(GROUPS, 1.5e-5)
        return [
            GoldenResult(f"golden-number-{i}", "infinity", names[letter], errors)  # type: ignore[arg-type]
            for i, letter in enumerate(statuses)
        ]

    monkeypatch.setattr("stepvar.conformance.verify", verify)
    result = run("verify", "some/folder", "--dtype", "bfloat16")
    assert (result.status, result.err) == (status, "")
    assert result.out.splitlines()[-1].startswith(last)
    assert asked == [([Path("some/folder")], torch.device("cpu"), torch.bfloat16)]
    for i, letter in enumerate(statuses):
        (row,) = [line for line in result.out.splitlines() if f" golden-number-{i} " in line]
        assert names[letter] in row and row.count("1.5e-05") == len(GROUPS)  # nothing is cut off


def test_missing_golden_is_named(run) -> None:
    result = run("verify", "gone")
    assert result.status == 1 and "gone" in result.error()
    assert run("verify", "gone", "--device", "tpu").status == 2


def test_skipped_kinds_have_a_line_each(run, tmp_path: Path) -> None:
    for name, kind in (("first", "tea"), ("second", "tea"), ("third", "milk")):
        (tmp_path / f"{name}.json").write_text(f'{{"config": {{"kind": "{kind}"}}, "tensors": {{}}}}')
    result = run("verify", str(tmp_path))
    assert result.status == 1
    assert [line for line in result.out.splitlines() if line.startswith("skipped")] == [
        "skipped goldens of kind 'tea' (first, second): this version cannot run them",
        "skipped goldens of kind 'milk' (third): this version cannot run them",
    ]


def test_package_verifies_itself_outside_of_a_checkout(tmp_path: Path) -> None:
    """A copy of the package alone, as a wheel installs it."""
    without = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(PACKAGED.parents[1], tmp_path / "stepvar", ignore=without)
    done = subprocess.run(
        [sys.executable, "-m", "stepvar", "verify"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    goldens = len(list(PACKAGED.glob("*.safetensors")))
    assert done.stdout.splitlines()[-1].startswith("yes: ") and f"all {goldens} goldens" in done.stdout
