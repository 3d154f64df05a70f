"""The command that a result says it was made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import command_line


def test_a_command_names_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    inside, outside = tmp_path / "runs" / "a.json", tmp_path.parent / "elsewhere"
    monkeypatch.setattr(
        sys, "argv", ["x.py", "--out", str(outside / "b"), "--code", str(outside), "--also", str(inside)]
    )
    assert command_line(None) == "python -m x.py --out runs/b --code PATH/TO/elsewhere --also runs/a.json"


def test_a_command_can_be_typed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--methods", "stepvar keep=0.5", "dense", "--out", "runs/a"])
    assert command_line(None) == "python -m x.py --methods 'stepvar keep=0.5' dense --out runs/a"
